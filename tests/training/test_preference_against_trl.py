"""SimPO and ORPO's odds term equal TRL's functions of the same log-probabilities."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.models import tiny_model
from tinyllm.training.objectives.pairs import PairLogprobs
from tinyllm.training.objectives.preference import ORPO, SimPO

pytestmark = pytest.mark.exhaustive


def test_simpo_and_odds_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"):
        monkeypatch.setenv(name, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
        orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    generator = torch.Generator().manual_seed(0)
    counts = [torch.randint(1, 20, (8,), generator=generator) for _ in range(2)]
    chosen, rejected = (-torch.rand(8, generator=generator) * 3 * n - 0.01 for n in counts)
    policy, none = PairLogprobs(chosen, rejected, *counts), torch.zeros(8, 2)
    means = chosen / counts[0], rejected / counts[1]
    theirs: Any = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.5, label_smoothing=0.0, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    simpo = SimPO(tiny_model(), beta=2.0, gamma=0.5).compare(policy, none)
    torch.testing.assert_close(simpo.loss, cpo.CPOTrainer.cpo_loss(theirs, *means)[0], rtol=1e-5, atol=1e-7)
    theirs.beta = 0.1
    ours = ORPO(tiny_model(), odds_weight=0.1).compare(policy, none)
    odds = orpo.ORPOTrainer.odds_ratio_loss(theirs, *means)[0]
    torch.testing.assert_close(ours.preference, -odds, rtol=1e-5, atol=1e-7)
