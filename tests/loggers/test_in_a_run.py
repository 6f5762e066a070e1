"""Loggers in real runs: training stays bit-identical, and a resumed run continues from its checkpoint."""

from pathlib import Path

import pytest

from tests.loggers.test_tensorboard import curves, expected
from tests.support.training_runs import SMALL, metrics, train, write_corpus
from tests.support.wandb_file import WandbRun
from tinyllm.runs.metrics_log import read_metrics


def weights(run: Path) -> bytes:
    return (next((run / "checkpoints").glob("step-000006")) / "model.safetensors").read_bytes()


@pytest.fixture
def shared(tmp_path: Path) -> list[str]:
    text = write_corpus(tmp_path / "words.txt")
    return ["dataset=text", f"dataset.path={text}", *SMALL, "trainer.max_steps=6", "model.dropout=0.1"]


@pytest.mark.slow
def test_tensorboard_leaves_training_bit_identical_and_shows_one_curve(shared: list[str], tmp_path: Path) -> None:
    """Saved at step 2, stopped at 5, resumed from 2."""
    assert train(*shared, f"run.dir={tmp_path / 'none'}", "logger=none") == 0
    run = tmp_path / "run"
    for stop in (2, 5):
        resume = [f"resume={run}/checkpoints/step-000002"] if stop == 5 else [*shared, f"run.dir={run}"]
        assert train(*resume, "logger=tensorboard", f"trainer.stop_after_steps={stop}") == 0
    assert train(f"resume={run}/checkpoints/step-000002") == 0
    assert weights(run) == weights(tmp_path / "none")
    assert metrics(run) == metrics(tmp_path / "none")
    assert curves(run / "tensorboard") == expected(run, "tokens")


@pytest.mark.slow
def test_wandb_leaves_training_bit_identical_and_stays_one_run(
    shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved at step 3, stopped at 5, resumed from 3, with samples and evaluations."""
    monkeypatch.setattr("tinyllm.loggers.wandb.STOP_TIMEOUT", 300.0)
    shared += ["trainer.eval_every=2", "trainer.sample_every=3", "trainer.sample_tokens=5", "checkpoint.keep=9"]
    assert train(*shared, f"run.dir={tmp_path / 'none'}", "logger=none") == 0
    run = tmp_path / "run"
    wandb = ["logger=wandb", "logger.mode=offline", "logger.finish_timeout=300"]
    assert train(*shared, f"run.dir={run}", *wandb, "trainer.stop_after_steps=3") == 0
    assert train(f"resume={run}/checkpoints/step-000003", "trainer.stop_after_steps=5") == 0
    assert train(f"resume={run}/checkpoints/step-000003") == 0
    assert weights(run) == weights(tmp_path / "none")
    assert metrics(run) == metrics(tmp_path / "none")
    first, second, third = (WandbRun(path) for path in sorted((run / "wandb").glob("offline-run-*")))
    assert first.run.run_id == second.run.run_id == third.run.run_id
    assert [row["step"] for row in second.metrics()] == [4, 5]
    assert first.metrics() + third.metrics() == read_metrics(run / "metrics.jsonl")
    assert [step for step, _ in first.samples() + third.samples()] == [3, 6]
    assert first.config["trainer"]["max_steps"] == 6
