"""curves.png shows what metrics.jsonl holds, and a picture that cannot be drawn never breaks a run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.loggers.curves import Curves, by_step, draw_curves, series
from tinyllm.training.callbacks import Outcome


def write_metrics(run_dir: Path, *, steps: int = 50) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(10, steps * 10 + 1, 10):
            record = {
                "step": step,
                "train/tokens": step * 8192,
                "train/loss": 1.5 + 3 * math.exp(-step / 80) + 0.05 * math.sin(step),
                "train/lr": 1e-3 * (1 - step / 600),
            }
            if step % 100 == 0:
                record["val/loss"] = record["train/loss"] + 0.1
            file.write(json.dumps(record) + "\n")


def outcome(run_dir: Path, status: str = "finished") -> Outcome:
    return Outcome(
        status=status,
        step=500,
        tokens=1,
        seconds=1.0,
        run_dir=run_dir,
        metrics={},
        best_step=None,
        best_val_loss=None,
    )


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_picture_is_drawn_however_the_run_ends(tmp_path: Path, status: str) -> None:
    write_metrics(tmp_path)
    messages: list[str] = []
    Curves(report=messages.append).on_end(outcome(tmp_path, status))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert messages == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_torn_lines_repeated_steps_and_nonfinite_values(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 20, "train/tokens": 200, "train/loss": 2.0}\n'
        '{"step": 10, "train/tokens": 100, "train/loss": NaN}\n'
        '{"step": 20, "train/tokens": 200, "train/loss": 1.5, "val/loss": null}\n'
        '{"step": 30, "val/loss": 1.25}\n'
        '{"step": 40, "train/lo',
        encoding="utf-8",
    )
    records = by_step(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [10, 20, 30]
    assert series(records, "train/loss") == ([200], [1.5])
    assert series(records, "val/loss") == ([200], [1.25])
    assert draw_curves(tmp_path) == tmp_path / "curves.png"


def test_no_picture_without_records(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_unwritable_picture_is_reported_and_raises_nothing(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    (tmp_path / "curves.png").mkdir()
    messages: list[str] = []
    Curves(report=messages.append).on_end(outcome(tmp_path))
    assert len(messages) == 1 and messages[0].startswith("curves.png was not drawn: cannot write: Is a directory")


@pytest.mark.slow
def test_drawing_does_not_import_pyplot(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    code = (
        "import sys, pathlib; from tinyllm.loggers.curves import draw_curves;"
        f"draw_curves(pathlib.Path({str(tmp_path)!r})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
