"""The expected duration: FLOPs of the run over the median FLOP/s of runs of like size that did the same work here."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllm.runs.listing import ListedRun
from tinyllm.studio.cost_text import source_of, texts_of
from tinyllm.studio.report import Figures, Work
from tinyllm.studio.speed import PastRun, expected, expected_seconds, past_runs

HERE = socket.gethostname()
WORK = Work(objective="next_token", precision="fp32", device="cpu, 2 threads")


def figures(**more: Any) -> Figures:
    known = {"parameters": 1000, "active_parameters": 500, "flops_per_token": 6000, "memory_bytes": 2_000_000}
    known |= {"cache_bytes_per_token": 100, "context": 64, "vocabulary": 256, "tokens_per_step": 512}
    return Figures(**{**known, "work": WORK, "steps": 10, "tokens": 5120, **more})


def past(name: str, flops: float, speed: float, **other: Any) -> PastRun:
    return PastRun(path=Path(name), work=replace(WORK, **other), flops_per_token=flops, tokens_per_s=speed)


def test_the_nearest_runs_decide() -> None:
    runs = [
        past("far", 6000 * 4.1, 1.0),
        past("a", 6000, 100.0),  # 600,000 FLOP/s
        past("b", 3000, 100.0),  # 300,000
        past("c", 12_000, 100.0),  # 1,200,000
        past("d", 6000 * 3.9, 1.0),
    ]
    found = expected(figures(), runs)
    assert found is not None and [run.path.name for run in found.runs] == ["a", "b", "c"]
    assert found.seconds == 5120 * 6000 / 600_000
    assert expected(figures(), runs[:1]) is None and expected(figures(tokens=None), runs) is None
    assert texts_of(figures(), found)["Time here"] == "about 0:51"
    how = "next_token in fp32 on cpu, 2 threads"
    assert source_of(found) == f"time: training alone, at the speed of a and 2 more ({how})"


@pytest.mark.parametrize("other", [{"objective": "grpo"}, {"precision": "bf16"}, {"device": "cuda"}, {"ranks": 2}])
def test_the_speed_of_other_work_is_not_taken(other: dict[str, Any]) -> None:
    runs = [past("other", 6000, 1.0, **other), past("same", 3000, 100.0)]
    found = expected(figures(), runs)
    assert found is not None and [run.path.name for run in found.runs] == ["same"]
    assert expected(figures(), runs[:1]) is None
    assert texts_of(figures(), None)["Time here"] == "no earlier run like this"


def recorded(path: Path, *, host: str = HERE, speed: float = 100.0, **more: Any) -> ListedRun:
    """A run directory with a recorded speed."""
    info = {"device": WORK.device, "precision": "fp32", "world_size": 1, "flops_per_token": 6000, **more}
    objective = info.pop("objective", None)
    path.mkdir()
    facts = {"status": "finished", "host": host, "info": info, "choices": {"objective": objective} if objective else {}}
    (path / "run.json").write_text(json.dumps(facts))
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "speed/tokens_per_s": speed}) + "\n")
    return ListedRun(path)


def test_what_a_run_did_is_read_from_its_directory(tmp_path: Path) -> None:
    runs = [
        recorded(tmp_path / "grpo", objective="grpo", speed=1.0),
        recorded(tmp_path / "elsewhere", objective="next_token", host=f"not-{HERE}", speed=1.0),
        recorded(tmp_path / "new", objective="next_token"),
        recorded(tmp_path / "old", speed=300.0, world_size=None),  # before objectives were chosen
        recorded(tmp_path / "ranks", speed=1.0, world_size=2),
        recorded(tmp_path / "damaged", objective="next_token", device=None),
    ]
    assert [(run.path.name, run.work.objective, run.work.ranks) for run in past_runs(runs)] == [
        ("grpo", "grpo", 1), ("new", "next_token", 1), ("old", "next_token", 1), ("ranks", "next_token", 2),
    ]  # fmt: skip
    # Of a comparison the objective alone is known: its newest run says where and how the next one runs.
    seconds = expected_seconds(objective="next_token", flops_per_token=6000, flops=6000 * 200, runs=runs)
    assert seconds == 1.0  # at the median of 100 and 300 tokens/s
    assert expected_seconds(objective="dpo", flops_per_token=6000, flops=1.0, runs=runs) is None


def test_what_is_not_known_is_said() -> None:
    shown = texts_of(figures(tokens=None, steps=None), None)
    assert shown["Time here"] == "no earlier run like this" and shown["Compute"] == shown["Steps"] == "–"
    assert shown["Epochs"] == "known once the data is prepared"
    shown = texts_of(figures(epochs=2.5), None)
    assert shown["Parameters"] == "1.00k (500 active)" and shown["Cache"] == "6.40 kB for 64 tokens"
    assert shown["Tokens per parameter"] == "5.12" and shown["Epochs"] == "2.5" and shown["Compute"] == "30.7 MFLOP"
