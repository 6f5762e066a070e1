"""Numbers and durations to read, and commands to copy."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.utils.text import command, duration, escape_control, python_command, quantity, short, shown_path


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (1234, "1.23k"),
        (12_345, "12.3k"),
        (804_480, "804k"),
        (999_700, "1.00M"),
        (1.5e9, "1.50G"),
        (2e18, "2000P"),
        (0.25, "0.25"),
    ],
)
def test_short(number: float, text: str) -> None:
    assert short(number) == text


def test_quantity() -> None:
    assert quantity(210_000_000, "B") == "210 MB"
    assert quantity(12, "B") == "12 B"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (200_000, "2d 7:33:20"), (-3, "0:00")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.text())
def test_plain_escapes_control_characters(text: str) -> None:
    shown = escape_control(text)
    assert all(character.isprintable() or character in "\n\t" or ord(character) > 159 for character in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_a_command_survives_the_shell(value: str) -> None:
    assert shlex.split(command("train", f"resume={value}"))[-1] == f"resume={value}"


def test_bash_parses_a_quoted_command_back() -> None:
    value = 'it\'s a $HOME `dir` (1), "x" \\ *'
    line = command("generate", f"run={value}")
    words = line.split(" -m ", 1)[1]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"tinyllm.generate\nrun={value}\n"


def test_plain_words_are_left_unquoted() -> None:
    assert command("train", "resume=outputs/a", "trainer.max_steps=4000").endswith(
        " -m tinyllm.train resume=outputs/a trainer.max_steps=4000"
    )


def test_python_command_starts_this_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert python_command() in ("python", "python3")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(python_command()).absolute() == Path(sys.executable).absolute()


def test_a_path_below_here_is_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "outputs" / "a") == str(Path("outputs/a"))
    assert shown_path(tmp_path.parent / "b") == str(tmp_path.parent / "b")
