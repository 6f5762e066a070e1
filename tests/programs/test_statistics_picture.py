"""The picture of ``prepare --stats`` shows the numbers of the statistics."""

from pathlib import Path

import pytest

from tests.data.conftest import text_corpus
from tests.support.fixtures import Call
from tinyllm.data.prepare import prepare
from tinyllm.data.statistics import statistics_of
from tinyllm.programs.statistics_picture import figure_of
from tinyllm.tokenizers.byte import ByteTrainer


def test_bars_are_the_statistics(tmp_path: Path) -> None:
    """Also with tokens that a picture could take for markup, and of several data sets."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for length in range(1, 20):
        (folder / f"{length}.txt").write_text("$x$ \\ " * length)
    found = statistics_of(prepare(text_corpus(folder), ByteTrainer(), cache_dir=tmp_path / "cache"))
    figure = figure_of({"one": found, "two": found})
    assert len(figure.axes) == 4
    lengths, tokens = figure.axes[:2]
    heights = [bar.get_height() for bar in lengths.patches]
    assert sum(heights) == sum(found.histogram.values()) == found.train.documents
    assert [height for height in heights if height] == list(found.histogram.values())
    assert [bar.get_width() for bar in tokens.patches] == pytest.approx([100 * share for _, share in found.frequent])
    labels = [label.get_text() for label in tokens.get_yticklabels()]
    assert labels == [repr(text)[:16] if len(repr(text)) <= 16 else f"{repr(text)[:15]}…" for text, _ in found.frequent]
    assert lengths.get_title(loc="left").startswith("one\n")


@pytest.mark.slow
def test_the_command_writes_it(tmp_path: Path, call: Call) -> None:
    (tmp_path / "text.txt").write_text("some words in a text, " * 50)
    file = tmp_path / "data.png"
    settings = ("dataset=text", f"dataset.path={tmp_path / 'text.txt'}", "tokenizer=byte", f"picture={file}")
    shown = call("prepare", *settings, "--stats", TINYLLM_CACHE=str(tmp_path / "cache"))
    assert shown.code == 0 and str(file) in shown.out and file.read_bytes().startswith(b"\x89PNG")
