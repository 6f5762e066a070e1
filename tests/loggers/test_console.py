"""Console output of a run in a terminal and in a file."""

import io
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.support import fake_run
from tinyllm.loggers.console import PlainConsole, TerminalConsole, console_for, sparkline
from tinyllm.runs.metrics_log import Speed
from tinyllm.training.callbacks import Callback, Outcome

ROOT = Path(__file__).resolve().parents[2]
SHOWN = r"\ta class \x1b[31mthat\x1b[0m returns the [bold]string[/bold] object"


def plain_lines(run_dir: Path, *, encoding: str = "utf-8", until: int = 400, status: str = "finished") -> list[str]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    fake_run.tell(PlainConsole(stream), run_dir, until=until, status=status)
    return raw.getvalue().decode(encoding).split("\n")


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="", write_through=True)

    def getvalue(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)

    def isatty(self) -> bool:
        return True


def test_stream_and_environment_choose_the_display() -> None:
    person = {"TERM": "xterm-256color"}
    assert isinstance(console_for(Terminal(), environ=person), TerminalConsole)
    for stream, environ in [
        (io.StringIO(), person),
        (Terminal(), person | {"CI": "true"}),
        (Terminal(), {"TERM": "dumb"}),
        (Terminal(), {}),
        (Terminal("latin-1"), person),
    ]:
        assert isinstance(console_for(stream, environ=environ), PlainConsole)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_file_output_has_no_control_characters(tmp_path: Path, encoding: str) -> None:
    *lines, last = plain_lines(tmp_path, encoding=encoding)
    assert last == ""
    assert [line for line in lines if not line.isprintable()] == []


def test_every_event_is_one_greppable_line(tmp_path: Path) -> None:
    lines = plain_lines(tmp_path)
    logs = [line for line in lines if re.match(r"step \d+/400 \| loss \d", line)]
    assert len(logs) == 40
    assert logs[9] == (
        "step 100/400 | loss 2.3342 | 60,000 tokens/s | MFU 33.0% | lr 7.73e-04 | grad 0.80 | 431 MB | ETA 0:41"
    )
    evaluations = [line for line in lines if "| val loss" in line]
    assert len(evaluations) == 4
    assert [line.endswith("| best") for line in evaluations] == [True, True, False, True]
    assert lines.count(f"sample at step 100 | {SHOWN}.\\x0d\\x07") == 1
    assert any(line.startswith("checkpoint at step 200 (periodic): ") for line in lines)
    assert "note: a step was skipped: the loss was not finite" in lines
    assert "finished at step 400" in lines
    assert "tokens/s: 60,000 (training alone)" in lines
    assert any(line.startswith("best val loss: 1.5277, perplexity 4.607, 2.2040 bits") for line in lines)


def test_commands_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path("outputs/it's mine")
    assert not any("-m tinyllm" in line for line in plain_lines(run_dir)), "without a checkpoint"
    (run_dir / "checkpoints").mkdir(parents=True)
    quoted = """run='outputs/it'"'"'s mine'"""
    ends = [line.split(" -m ")[1] for line in plain_lines(run_dir) if " -m tinyllm" in line]
    assert ends == [
        f"tinyllm.generate {quoted}",
        f"tinyllm.evaluate {quoted}",
        f"tinyllm.train {quoted.replace('run=', 'resume=')} trainer.max_steps=800",
    ]
    ends = [
        line.split(" -m ")[1] for line in plain_lines(run_dir, until=120, status="interrupted") if " -m tinyllm" in line
    ]
    assert ends == [f"tinyllm.generate {quoted}", f"tinyllm.train {quoted.replace('run=', 'resume=')}"]


def test_commands_repeat_the_flags_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    stream = io.StringIO()
    fake_run.tell(PlainConsole(stream, flags=("--config-dir", "my conf")), tmp_path)
    commands = [line for line in stream.getvalue().splitlines() if " -m tinyllm" in line]
    assert len(commands) == 3 and all(" --config-dir 'my conf' " in line for line in commands)


def terminal_text(run_dir: Path, *, width: int = 100, **how: object) -> str:
    stream = Terminal()
    console = Console(
        file=stream, force_terminal=True, width=width, height=40, color_system="truecolor", highlight=False
    )
    fake_run.tell(TerminalConsole(console), run_dir, **how)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_terminal_shows_the_same_facts(tmp_path: Path, width: int) -> None:
    text = terminal_text(tmp_path, width=width)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for fact in (
        "804k parameters",
        "val loss 2.3842",
        "● best",
        "400 of 400",
        "best val loss",
        "a step was skipped",
    ):
        assert fact in shown
    # Sampled text is shown literally: neither escape sequences nor rich markup take effect.
    assert "\x1b[31mthat" not in text and "\x07" not in text
    assert re.sub(r"\s+", " ", shown).count(SHOWN[2:]) == 4


def test_cursor_and_streams_are_restored(tmp_path: Path) -> None:
    streams = sys.stdout, sys.stderr
    text = terminal_text(tmp_path, until=50, status="interrupted")
    assert (sys.stdout, sys.stderr) == streams
    hidden = [match.group() for match in re.finditer(r"\x1b\[\?25[lh]", text)]
    # Shown again at once, so that a killed process does not leave the terminal without a cursor.
    assert hidden[:2] == ["\x1b[?25l", "\x1b[?25h"] and hidden[-1] == "\x1b[?25h"


def test_live_display_in_a_pseudo_terminal() -> None:
    master, slave = pty.openpty()
    environ = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm-256color"}
    code = (
        "from pathlib import Path; from tests.support import fake_run;"
        "from tinyllm.loggers.console import console_for; fake_run.tell(console_for(), Path('outputs/a'))"
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=slave,
        stderr=slave,
        stdin=slave,
        cwd=ROOT,
        env=environ,
    )
    os.close(slave)
    received = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the child closed its end
            break
        if not chunk:
            break
        received += chunk
    assert child.wait(timeout=60) == 0
    assert b"\x1b[" in received and b"Traceback" not in received
    assert "finished" in received.decode()


@pytest.mark.slow
def test_closed_pipe_does_not_end_the_run() -> None:
    code = (
        "import sys; from pathlib import Path; from tests.support import fake_run;"
        "from tinyllm.loggers.console import console_for; fake_run.tell(console_for(), Path('outputs/a'));"
        "print('end of the run', file=sys.stderr)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "end of the run\n")


def test_remaining_time_excludes_evaluation() -> None:
    speed = Speed()
    speed.start(0)
    for step in range(1, 21):
        # The trainer's figure excludes evaluation; measured by the wall clock, the speed would be half of it.
        speed.add({"train/tokens": step * 1000.0, "speed/tokens_per_s": 500.0})
    assert speed.remaining(5000) == pytest.approx(10.0)
    assert speed.mean == pytest.approx(500.0)


def test_remaining_time_ignores_warm_up_and_outliers() -> None:
    speed = Speed()
    speed.start(0)
    assert speed.remaining(100) is None
    for step, rate in enumerate([5.0, 100.0, 100.0, 1.0, 100.0, 2.0, 100.0], 1):
        speed.add({"train/tokens": step * 1000.0, "speed/tokens_per_s": rate})
        assert speed.remaining(1000) == pytest.approx(200.0 if step == 1 else 10.0, rel=1e-6)
    for step in range(8, 50):  # a lasting change does
        speed.add({"train/tokens": step * 1000.0, "speed/tokens_per_s": 50.0})
    assert speed.remaining(1000) == pytest.approx(20.0)


def test_remaining_tokens_of_a_resumed_run_whose_rows_vary() -> None:
    """The plan counts on guessed lengths, and steps before the resume may have had others."""
    resumed = replace(fake_run.info(Path("run"), max_steps=400, start_step=100), rows_vary=True, start_tokens=50_000)
    assert resumed.tokens_left(step=120, trained=58_000) == 280 * 400
    assert resumed.tokens_left(step=400, trained=170_000) == 0
    assert resumed.tokens_left(step=100, trained=50_000) == 400 * 8192 - 50_000, "nothing is known yet"
    assert replace(resumed, rows_vary=False).tokens_left(step=120, trained=58_000) == 400 * 8192 - 58_000


def test_mean_speed_is_tokens_over_seconds() -> None:
    speed = Speed()
    speed.start(1000)  # trained before the resume
    speed.add({"train/tokens": 2000.0, "speed/tokens_per_s": 100.0})
    speed.add({"train/tokens": 5000.0, "speed/tokens_per_s": 300.0})
    assert speed.mean == pytest.approx(4000 / 20)
    speed.add({"train/loss": 1.0})
    speed.add({"train/tokens": 5000.0, "speed/tokens_per_s": float("nan")})
    assert speed.mean == pytest.approx(4000 / 20)


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0, 1.0, float("nan"), 7.0, float("inf")]) == "▁▂█"


def test_records_without_metrics_are_shown(tmp_path: Path) -> None:
    stream = Terminal()
    displays: list[Callback] = [
        PlainConsole(stream),
        TerminalConsole(Console(file=stream, force_terminal=True, width=80)),
    ]
    outcome = Outcome(
        status="failed",
        step=10,
        tokens=0,
        seconds=0.0,
        run_dir=tmp_path,
        metrics={},
        best_step=None,
        best_val_loss=None,
        reason="5 steps in a row were not finite",
    )
    for display in displays:
        display.on_start(fake_run.info(tmp_path))
        display.on_log(10, {})
        display.on_evaluate(10, {"val/loss": float("nan"), "val/ppl": float("nan")}, is_best=False)
        display.on_sample(10, "")
        display.on_end(outcome)
    assert "nan" in stream.getvalue()
