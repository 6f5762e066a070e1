"""Results from run directories, and the names of these."""

import json
from pathlib import Path

import pytest

from tinyllm.runs.seal import sealed
from tinyllm.studies.compare.results import Run
from tinyllm.studies.compare.run_ledger import result_of, run_name
from tinyllm.studies.compare.run_pool import PooledRun

LOSSES = [3.0, 2.5, 2.25]


def finished(path: Path, last: float | None) -> Run:
    """The result of a run with evaluations at steps 2, 4 and 6."""
    path.mkdir()
    records = [{"step": 2 * i, "tokens": 64 * i, "val/bpb": value} for i, value in enumerate([*LOSSES[:2], last], 1)]
    records.insert(1, {"step": 3, "tokens": 80, "train/loss": 2.0, "memory/peak_bytes": 7})
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    facts = {"status": "finished", "result": {"seconds": 1.5}, "sha256": sealed(path)}
    (path / "run.json").write_text(json.dumps(facts))
    run = PooledRun(label="mha, seed 1", path=path, settings=["attn=mha"])
    return result_of(run, arm="mha", seed=1, metric="val/bpb", study=path.parent, code=None)


def test_the_result_is_the_last_evaluation(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", LOSSES[2])
    assert (run.status, run.value, run.peak_memory_bytes, run.seconds) == ("finished", LOSSES[2], 7, 1.5)
    assert [one["val/bpb"] for one in run.records] == LOSSES
    assert (
        run.command == f"python -m tinyllm.train attn=mha run.dir={tmp_path / 'run'}"
        and run.path == "run"
        and "metrics.jsonl" in run.sha256
    )


def test_a_diverged_run_is_not_judged_by_an_earlier_evaluation(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", None)
    assert (run.status, run.value, run.error) == ("failed", None, "its last val/bpb is not a finite number")


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"optimizer": {"lr": 2e-3}}},
        {"config": {"optimizer": {"lr": 1e-3}, "model": {}}},
        {"data": {"train": "b"}},
        {"seed": 2},
    ],
)
def test_the_name_depends_on_everything_that_the_results_depend_on(other: dict[str, object]) -> None:
    same = {"seed": 1, "config": {"optimizer": {"lr": 1e-3}}, "data": {"train": "a"}}
    kept = {
        "seed": 1,
        "config": {"optimizer": {"lr": 1e-3}, "run": {"dir": "x"}, "resume": "auto"},
        "data": {"train": "a"},
    }
    assert run_name("mha gelu", **same) == run_name("mha gelu", **kept)  # type: ignore[arg-type]
    assert run_name("mha gelu", **same).startswith("mha-gelu_s1_")  # type: ignore[arg-type]
    assert run_name("mha gelu", **same) != run_name("mha gelu", **same | other)  # type: ignore[arg-type]
