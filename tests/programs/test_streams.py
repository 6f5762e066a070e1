"""Standard streams that are closed, lose their reader or lack characters; and LOG_LEVEL."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from tests.support import fake_run
from tests.support.fixtures import Call
from tinyllm.errors import UserError
from tinyllm.loggers.console import console_for
from tinyllm.studies.compare.progress import Screen
from tinyllm.utils.environment import log_level
from tinyllm.utils.streams import _Unbreakable

PRINTS = """
import os, sys
from tinyllm.utils.streams import prepare_streams
prepare_streams(ends_with_reader={ends})
print("4 \\u00d7 MHA \\u2192", flush=True)
print("n\\u00f6te", file=sys.stderr, flush=True)
opened = os.open(os.devnull, os.O_RDONLY)
print("end", flush=True)
open({mark!r}, "w").write(f"{{opened}} {{sys.stdin.read()!r}}")
"""


def shell(tmp_path: Path, redirected: str, *, ends: bool = False, **environ: str) -> tuple[int, str, str]:
    """Exit code, output of the pipeline, and the file that the program writes at its end."""
    mark = tmp_path / "mark"
    mark.unlink(missing_ok=True)
    code = PRINTS.format(ends=ends, mark=str(mark))
    line = f'"$0" -c "$1" {redirected}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environ,
    )
    return done.returncode, done.stdout, mark.read_text() if mark.is_file() else ""


def test_characters_missing_in_the_encoding_are_replaced(tmp_path: Path) -> None:
    code, out, _ = shell(tmp_path, "", PYTHONIOENCODING="ascii")
    assert (code, out) == (0, "4 ? MHA ?\nn\\xf6te\nend\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_discards_output_and_keeps_its_descriptor(tmp_path: Path, closed: str) -> None:
    code, out, mark = shell(tmp_path, closed)
    assert (code, "Error" in out) == (0, False)
    assert int(mark.split()[0]) > 2  # no file takes the descriptor of a standard stream
    assert mark.split()[1] == "''"


def test_a_lost_reader_ends_only_programs_that_just_print(tmp_path: Path) -> None:
    for ends, mark in ((False, True), (True, False)):
        code, out, written = shell(tmp_path, "2>&1 | true", ends=ends)
        assert (code, out, bool(written)) == (0, "", mark)


def test_other_write_errors_are_raised() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert _Unbreakable(writer, ends=False).write(b"abc") == 3
    assert _Unbreakable(writer, ends=True).write(b"abc") == 3  # discarded by now
    os.close(writer)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        _Unbreakable(full, ends=False).write(b"abc")
    os.close(full)


def test_log_level_decides_what_a_run_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for level in ("DEBUG", "", "info", "WARN", "WARNING", "ERROR", "critical"):
        monkeypatch.setenv("LOG_LEVEL", level)
        stream = StringIO()
        console = console_for(stream)
        fake_run.tell(console, Path("outputs/a"))
        console.on_message("mind the gap")
        Screen().say("arm 1")
        shown[level] = stream.getvalue(), capsys.readouterr().out
    assert shown["DEBUG"] == shown[""] == shown["info"]
    assert "step " in shown[""][0] and shown[""][1] == "arm 1\n"
    assert shown["WARN"] == shown["WARNING"]
    notes, rest = shown["WARNING"]
    assert rest == "" and {line.partition(":")[0] for line in notes.splitlines()} == {"note"}
    assert "note: mind the gap\n" in notes
    assert shown["ERROR"] == shown["critical"] == ("", "")


def test_an_unknown_log_level_is_refused(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(UserError, match=r"no such log level \(LOG_LEVEL=loud\): one of DEBUG, INFO, WARNING, ERROR"):
        log_level()
    for program in ("train", "runs"):
        answer = call(program)
        assert (answer.code, answer.made, len(answer.err.splitlines())) == (2, [], 1)
    assert "Traceback" in call("train", "trainer.max_steps=-1", LOG_LEVEL="DEBUG").err
