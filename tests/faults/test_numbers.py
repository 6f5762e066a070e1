"""NaN and infinity: the step is skipped, and ruined weights are not saved."""

from pathlib import Path

import pytest
import torch

from tests.support.elsewhere import train_copy
from tests.support.training_runs import SMALL, train
from tinyllm.runs.checkpoint import find
from tinyllm.runs.state_diff import compare, contents


def changed(one: Path, other: Path) -> set[str]:
    """The sections in which two checkpoints differ."""
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
    assert answer.err.startswith("error: loss or gradient norm not finite") and f"({asked})" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert all(section.equal for section in compare(good, contents(find(tmp_path / "run"))))


@pytest.mark.slow
def test_ruined_weights_are_never_saved_and_the_error_names_a_good_checkpoint(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that ruins the weights in one step: after it, every batch has a NaN loss."""
    run = tmp_path / "run"
    shared = ["dataset=text", corpus, *SMALL, "trainer.checkpoint_every=2", f"run.dir={run}", "trainer.max_steps=6"]
    assert train(*shared) == 0
    patient = "trainer.nonfinite.patience=99"
    ways = [[], ["trainer.nonfinite.action=stop"], [patient, "trainer.eval_every=8"], [patient]]
    for more in [*ways, [patient, "trainer.stop_after_steps=9"]]:
        capsys.readouterr()
        assert train(f"resume={run}", "trainer.max_steps=20", "optimizer.lr=1e30", *more) == 2
        said = capsys.readouterr().err
        assert "step-000006, the last checkpoint, was saved before that" in said and len(said.splitlines()) == 1
        assert sorted(path.name for path in (run / "checkpoints").glob("*-*")) == ["step-000004", "step-000006"]
    assert train(f"resume={run}", "trainer.max_steps=8", "optimizer.lr=1e-4") == 0
    assert all(torch.isfinite(tensor).all() for tensor in find(run).weights().values())


@pytest.mark.slow
def test_a_checkpoint_of_the_step_that_ruined_the_weights_is_marked_doubtful(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shared = ["dataset=text", corpus, *SMALL, "trainer.checkpoint_every=1", f"run.dir={run}", "trainer.max_steps=4"]
    assert train(*shared) == 0
    assert train(f"resume={run}", "trainer.max_steps=20", "optimizer.lr=1e30") == 2
    said = capsys.readouterr().err
    good = run / "checkpoints/step-000004"
    assert f"step-000005, the last checkpoint, may already contain bad weights; resume={good}" in said
    assert train(f"resume={good}", "optimizer.lr=1e-4", "trainer.max_steps=6") == 0
