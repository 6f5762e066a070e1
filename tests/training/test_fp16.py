"""fp16 with a loss scale: what the scale must not change, what an overflow must not touch, and resuming."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training_runs import SMALL, digest, logged, metrics, train
from tinyllm.runs.checkpoint import find
from tinyllm.training.objectives.next_token import NextToken

FP16 = ("dataset=text", *SMALL, "trainer.precision=fp16", "optimizer.lr=1e-3")
MIXED = ("moe=aux_free", "ema.enabled=true", "ema.decay=0.5", "trainer.grad_accum_steps=2")
GradScaler = torch.amp.GradScaler


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Settings for all scalers created from here on."""
    settings: dict[str, float] = {}
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: GradScaler(device, enabled=enabled, **settings)
    )
    return settings


BALANCED = ("moe=aux_loss", "model.block.moe.coeff=100", "objective.z_loss=1e-3", "trainer.grad_clip=0.2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [pytest.param((), id="plain"), pytest.param(BALANCED, id="balanced", marks=pytest.mark.slow)]
)
def test_a_power_of_two_as_loss_scale_changes_no_metric(
    options: tuple[str, ...], corpus: str, tmp_path: Path, scaler: dict[str, float]
) -> None:
    """Gradients are unscaled before their norm is logged and clipped, and every term of the loss is scaled."""
    runs: dict[float, list[dict[str, Any]]] = {}
    for scale in (2.0**10, 2.0**13):  # no underflow that matters, no overflow
        scaler["init_scale"] = scale
        run = tmp_path / str(scale)
        assert train(corpus, *FP16, *options, "trainer.max_steps=4", f"run.dir={run}") == 0
        assert find(run).state()["scaler"]["scale"] == scale
        assert set(logged(run, "loss/scale")) == {scale}
        runs[scale] = metrics(run)
    for one, other in zip(*runs.values(), strict=True):
        for key in one.keys() - {"loss/scale"}:
            assert one[key] == pytest.approx(other[key], rel=2e-3), key


@pytest.mark.slow
def test_an_overflow_skips_the_step_and_is_reported(
    corpus: str, tmp_path: Path, scaler: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = (corpus, *FP16, *MIXED, "trainer.max_steps=12", "schedule=linear")
    shared += ("trainer.nonfinite.patience=1",)  # an overflow is no fault
    scaler["init_scale"] = 2.0**10
    assert train(*shared, f"run.dir={tmp_path / 'run'}", "trainer.stop_after_steps=1") == 0
    before = find(tmp_path / "run")
    state = before.state()
    state["scaler"]["scale"] = 2.0**40
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(before), "state", lambda self: copy.deepcopy(state))
        assert train(f"resume={tmp_path / 'run'}", "trainer.stop_after_steps=4") == 0
    out = capsys.readouterr().out
    for step in range(3):
        scales = f"loss scale {2.0 ** (40 - step):g} → {2.0 ** (39 - step):g}"
        assert f"note: step {step + 2}: loss " in out and f"step skipped, weights untouched, {scales}" in out
    after = find(tmp_path / "run")
    assert after.step == 4
    assert all(torch.equal(tensor, after.weights()[name]) for name, tensor in before.weights().items())  # bias included
    for section in ("optimizer", "average"):
        assert flat(after.state()[section]) == flat(state[section])
    assert (after.state()["scaler"]["scale"], after.state()["skipped"]) == (2.0**37, 0)
    norms, scales = logged(tmp_path / "run", "train/grad_norm"), logged(tmp_path / "run", "loss/scale")
    assert norms[1:] == [None] * 3 and scales[1:] == [2.0**39, 2.0**38, 2.0**37]
    rates = logged(tmp_path / "run", "train/lr")
    assert len(set(rates)) == 4  # the schedule counts steps, taken or not
    assert logged(tmp_path / "run", "tokens") == [s * 128 for s in range(1, 5)]


def flat(node: Any) -> list[Any]:
    """The leaves of nested containers, tensors as lists."""
    if isinstance(node, dict):
        return [leaf for key in sorted(node, key=str) for leaf in (key, *flat(node[key]))]
    return [node.tolist()] if isinstance(node, torch.Tensor) else [node]


def test_a_nan_loss_is_a_fault_and_not_an_overflow(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = NextToken.forward
    monkeypatch.setattr(NextToken, "forward", lambda *arguments: original(*arguments).as_nan())
    assert train(corpus, *FP16, "trainer.max_steps=9", "trainer.nonfinite.patience=3", f"run.dir={tmp_path / 'a'}") == 2
    assert "not finite for 3 steps in a row" in capsys.readouterr().err
    assert train(corpus, *FP16, "trainer.nonfinite.action=stop", f"run.dir={tmp_path / 'b'}") == 2
    assert "trainer.nonfinite.action=stop" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_are_not_skipped_forever_when_no_scale_helps(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gradients are finite but their norm is not, so the scaler sees no overflow."""
    from tinyllm.training import trainer

    monkeypatch.setattr(trainer, "clip", lambda parameters, max_norm: torch.tensor(math.inf))
    run = tmp_path / "run"
    assert train(corpus, *FP16, "trainer.max_steps=9", "trainer.nonfinite.patience=3", f"run.dir={run}") == 2
    assert "not finite for 3 steps in a row" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [pytest.param((), id="plain", marks=pytest.mark.exhaustive), pytest.param(MIXED, id="mixed")]
)
def test_loss_scale_and_growth_counter_survive_a_resume(
    options: tuple[str, ...], corpus: str, tmp_path: Path, scaler: dict[str, float]
) -> None:
    """Across an overflow and two growths, with stops in between."""
    scaler |= {"init_scale": 2.0**24, "growth_interval": 3}
    shared = (corpus, *FP16, *options, "trainer.max_steps=20", "model.dropout=0.1")
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    scales = logged(tmp_path / "whole", "loss/scale")
    pairs = list(pairwise(scales))
    assert any(a > b for a, b in pairs) and any(a < b for a, b in pairs)
    grown = next(step for step, (a, b) in enumerate(pairs, start=2) if a < b)
    assert train(*shared, f"run.dir={tmp_path / 'parts'}", f"trainer.stop_after_steps={grown - 2}") == 0
    assert find(tmp_path / "parts").state()["scaler"]["_growth_tracker"] == 1
    scaler |= {"init_scale": 3.0, "growth_interval": 77}  # of no effect: the checkpoint has them
    assert train(f"resume={tmp_path / 'parts'}", f"trainer.stop_after_steps={grown + 1}") == 0
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
