"""trainer.profile: what is recorded, that it changes nothing, and that its failure does not end the run."""

import csv
import gzip
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.training.profiler import WARM_UP, Profiler, write_memory


def profiled(directory: Path, *, made: int, steps: int, memory: bool = False, prefix: str = "") -> list[str]:
    """Train a small model for some steps under the profiler; returns its messages."""
    said: list[str] = []
    model = nn.Linear(64, 64)
    profiler = Profiler(
        directory, steps=steps, memory=memory, device=torch.device("cpu"), report=said.append, prefix=prefix
    )
    with profiler:
        for _ in range(made):
            model(torch.randn(8, 64)).square().mean().backward()
            profiler.step()
    return said


def trace(directory: Path, name: str = "trace.json.gz") -> list[dict[str, Any]]:
    with gzip.open(directory / name) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


@pytest.mark.parametrize("made", [WARM_UP + 2, WARM_UP + 7])
def test_the_steps_after_the_warm_up_are_recorded(made: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (said,) = profiled(tmp_path / "profile", made=made, steps=2)
    names = [one["name"] for one in trace(tmp_path / "profile") if one.get("cat") == "cpu_op"]
    assert names.count("aten::addmm") == 2
    assert "aten::addmm" in (tmp_path / "profile" / "operators.txt").read_text()
    assert said.startswith(f"profile of 2 steps in {tmp_path / 'profile'}; most time in ")
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("USDT:")] == []  # torch's own trace of itself
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"trace.json.gz", "operators.txt"}


def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    (said,) = profiled(tmp_path / "a", made=WARM_UP + 1, steps=5)
    assert said.startswith("profile of 1 steps of the 5 requested in")
    assert profiled(tmp_path / "b", made=2, steps=5) == [
        "no profile: the run took 2 steps, and the first 3 are not recorded"
    ]
    assert not (tmp_path / "b").exists()


def test_the_memory_of_the_cpu_is_a_table_that_adds_up(tmp_path: Path) -> None:
    profiled(tmp_path / "profile", made=9, steps=3, memory=True, prefix="rank1-")
    with (tmp_path / "profile" / "rank1-memory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    allocated = 0
    for row in rows:
        allocated += int(row["bytes"])
        assert int(row["allocated"]) == allocated
    assert {int(row["step"]) for row in rows} == {0, 1, 2}
    outputs = [row for row in rows if row["operator"] == "aten::addmm" and int(row["bytes"]) > 0]
    assert {int(row["bytes"]) for row in outputs} == {8 * 64 * 4}
    assert trace(tmp_path / "profile", "rank1-trace.json.gz")


def test_the_innermost_operator_is_found(tmp_path: Path) -> None:
    """Of nested, consecutive and another thread's operators."""

    def op(name: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
        return {"ph": "X", "cat": "cpu_op", "name": name, "ts": ts, "dur": dur, "tid": tid}

    def moment(ts: float, tid: int = 1) -> dict[str, Any]:
        return {"ph": "i", "name": "[memory]", "ts": ts, "tid": tid, "args": {"Bytes": 1, "Total Allocated": 1}}

    events = [
        op("outer", 10, 50),
        op("first", 12, 10),
        op("second", 30, 10),
        op("inside", 32, 2),
        op("other", 0, 99, 2),
    ]
    moments = [moment(one) for one in (5, 11, 15, 25, 33, 36, 45, 70)] + [moment(15, tid=2)]
    write_memory({"traceEvents": events + moments}, tmp_path / "memory.csv")
    with (tmp_path / "memory.csv").open(newline="") as file:
        found = sorted((float(row["us"]), row["operator"]) for row in csv.DictReader(file))
    assert [name for _, name in found] == [
        "", "outer", "first", "other", "outer", "inside", "second", "outer", "",
    ]  # fmt: skip


def test_a_full_disk_loses_the_profile_and_not_the_run(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        (said,) = profiled(tmp_path / "profile", made=9, steps=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.startswith("no profile: OSError: the trace could not be written (")
    assert list((tmp_path / "profile").iterdir()) == []


@pytest.mark.slow
def test_a_profile_changes_no_bit_of_the_run(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=6", "model.dropout=0.1"]
    assert train(*shared, f"run.dir={tmp_path / 'plain'}") == 0
    profile = ["trainer.profile.steps=2", "trainer.profile.memory=true"]
    assert train(*shared, f"run.dir={tmp_path / 'profiled'}", *profile) == 0
    assert digest(tmp_path / "profiled") == digest(tmp_path / "plain")
    assert metrics(tmp_path / "profiled") == metrics(tmp_path / "plain")
    steps = {one["name"] for one in trace(tmp_path / "profiled" / "profile") if "ProfilerStep" in one.get("name", "")}
    assert len(steps) == 2
    assert (tmp_path / "profiled" / "profile" / "memory.csv").is_file()


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_a_snapshot(tmp_path: Path) -> None:
    said: list[str] = []
    device = torch.device("cuda")
    model = nn.Linear(64, 64, device=device)
    profiler = Profiler(tmp_path / "profile", steps=2, memory=True, device=device, report=said.append)
    with profiler:
        for _ in range(WARM_UP + 2):
            model(torch.randn(8, 64, device=device)).square().mean().backward()
            profiler.step()
    assert [one[:21] for one in said] == ["profile of 2 steps in"]
    names = {path.name for path in (tmp_path / "profile").iterdir()}
    assert names == {"trace.json.gz", "operators.txt", "memory.pickle"}
    assert any(one.get("cat") == "kernel" for one in trace(tmp_path / "profile"))
