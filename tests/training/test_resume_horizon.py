"""The command that a finished run prints to continue works for every kind of horizon."""

from pathlib import Path

import pytest

from tests.support.training_runs import SMALL, logged, train


@pytest.mark.slow
@pytest.mark.parametrize("horizon", ["trainer.max_steps=4", "trainer.max_tokens=256", "trainer.max_epochs=0.05"])
def test_a_new_horizon_replaces_the_old_one(horizon: str, corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("dataset=text", corpus, *SMALL, horizon, f"run.dir={run}") == 0
    ended = logged(run, "step")[-1]
    assert train(f"resume={run}", f"trainer.max_steps={2 * ended}") == 0
    assert logged(run, "step")[-1] == 2 * ended


@pytest.mark.slow
def test_another_batch_setting_replaces_the_old_one(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shared = [
        "dataset=text",
        corpus,
        *SMALL,
        f"run.dir={run}",
        "trainer.max_steps=4",
        "trainer.stop_after_steps=2",
    ]
    assert train(*shared, "trainer.grad_accum_steps=2") == 0
    assert train(f"resume={run}", "trainer.total_batch_tokens=64") == 0
    assert logged(run, "tokens")[1:] == [256, 320, 384]
