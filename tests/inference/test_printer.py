"""Printing of streamed samples: what appears where, and in which order."""

import io

import pytest

from tinyllm.inference.generator import GeneratedPiece
from tinyllm.inference.printer import Printer


def test_samples_are_printed_one_after_the_other_as_they_grow() -> None:
    out, notes = io.StringIO(), io.StringIO()
    printer = Printer(prompts=["P:"], n_samples=3, out=out, notes=notes)
    states = []

    def stream() -> list[GeneratedPiece]:
        for piece in (
            GeneratedPiece(0, "a1", False), GeneratedPiece(1, "b1", False), GeneratedPiece(2, "c1", True),
            GeneratedPiece(0, "a2", True), GeneratedPiece(1, "b2\n", True),
        ):  # fmt: skip
            yield piece
            states.append(out.getvalue())

    printer.show(stream())
    assert states[0] == "P:a1"
    assert states[2] == "P:a1"
    assert states[3] == "P:a1a2\n\nP:b1"
    assert out.getvalue() == "P:a1a2\n\nP:b1b2\n\nP:c1\n"
    assert notes.getvalue() == "sample 1 of 3\nsample 2 of 3\nsample 3 of 3\n"
    assert printer.tokens == 5


def test_interrupted_output_ends_with_a_line_end() -> None:
    out = io.StringIO()

    def stream() -> object:
        yield GeneratedPiece(0, "half", False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Printer(prompts=[""], n_samples=1, out=out, notes=io.StringIO()).show(stream())
    assert out.getvalue() == "half\n"


def test_clean_is_applied_to_all_printed_text() -> None:
    out = io.StringIO()
    Printer(prompts=["p"], n_samples=1, clean=str.upper, out=out, notes=io.StringIO()).show(
        [GeneratedPiece(0, "a", True)]
    )
    assert out.getvalue() == "PA\n"


def test_each_sample_is_printed_after_its_prompt() -> None:
    out, notes = io.StringIO(), io.StringIO()
    printer = Printer(prompts=["P:", "Q:"], n_samples=2, out=out, notes=notes)
    printer.show(
        [
            GeneratedPiece(1, "q2", True, 1),
            GeneratedPiece(0, "q1", True, 1),
            GeneratedPiece(1, "p2", True, 0),
            GeneratedPiece(0, "p1", True, 0),
        ]
    )
    assert out.getvalue() == "P:p1\n\nP:p2\n\nQ:q1\n\nQ:q2\n"
    assert notes.getvalue().splitlines()[2] == "prompt 2 of 2, sample 1 of 2"
