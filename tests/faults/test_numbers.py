"""A loss that is no finite number: the step leaves nothing behind."""

from pathlib import Path

import pytest

from tests.faults.elsewhere import train_copy
from tests.training.runs import SMALL, train
from tinyllm.training.checkpoint import find
from tinyllm.training.compare_states import compare, contents


def changed(one: Path, other: Path) -> set[str]:
    """The sections of two checkpoints that differ."""
    return {section.name for section in compare(contents(find(one)), contents(find(other))) if not section.equal}


@pytest.mark.slow
def test_a_step_with_a_nan_leaves_weights_average_and_optimizer_alone(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=8", "ema.enabled=true", "moe=aux_free"]
    shared += ["model.block.moe.n_experts=4", "trainer.grad_accum_steps=2"]
    before, spoilt, whole = (tmp_path / name for name in ("before", "spoilt", "whole"))
    assert train(*shared, f"run.dir={before}", "trainer.stop_after_steps=6") == 0
    answer = train_copy(*shared, f"run.dir={spoilt}", "trainer.stop_after_steps=7", fault="nan@step=6")
    assert answer.code == 0, answer
    assert "step 7: loss nan, gradient norm nan (sequences 48 to 55): step skipped, weights untouched" in answer.out
    assert changed(before, spoilt) <= {"counters", "rng", "window"}
    assert train(*shared, f"run.dir={whole}", "trainer.stop_after_steps=7") == 0
    assert {"weights", "average", "optimizer"} <= changed(spoilt, whole)
    assert train(f"resume={spoilt}") == 0


@pytest.mark.parametrize(
    "asked", ["trainer.nonfinite.patience=2", pytest.param("trainer.nonfinite.action=stop", marks=pytest.mark.slow)]
)
def test_a_run_that_gives_up_keeps_its_last_good_checkpoint(asked: str, corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=8", f"run.dir={tmp_path / 'run'}"]
    assert train(*shared, "trainer.stop_after_steps=3") == 0
    good = contents(find(tmp_path / "run"))
    answer = train_copy(f"resume={tmp_path / 'run'}", asked, fault="nan@step")
    assert answer.code == 2, answer
    assert answer.err.startswith("error: not finite") and f"({asked})" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert all(section.equal for section in compare(good, contents(find(tmp_path / "run"))))
