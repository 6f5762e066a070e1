"""Advantages and the clipped loss against loops over single numbers."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from tests.support.models import tiny_model
from tinyllm.config.option_files import conf_dir
from tinyllm.data.batch import Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.training.objectives.grpo import ADVANTAGE, GRPO, OLD, PER_TOKEN, REFERENCE
from tinyllm.training.objectives.policy_gradient import ADVANTAGES, advantages, clipped_losses, divisor, k3, summed

REWARDS = [[1.0, 0.0, 0.25], [0.1, 0.1, 0.1], [-3.0, 2.0, 2.0]]
SETTINGS = {"group_size": 3, "max_new_tokens": 9, "temperature": 0.7, "clip_low": 0.2, "clip_high": 0.3}


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_advantages_equal_the_formulas_and_equal_rewards_give_exactly_none(kind: str) -> None:
    found = advantages(torch.tensor(REWARDS, dtype=torch.float64), kind)
    for row, rewards in zip(found.tolist(), REWARDS, strict=True):
        mean = sum(rewards) / 3
        std = math.sqrt(sum((x - mean) ** 2 for x in rewards) / 2)
        for got, x in zip(row, rewards, strict=True):
            wanted = {"mean": x - mean, "std": (x - mean) / (std + 1e-4), "leave_one_out": x - (sum(rewards) - x) / 2}
            assert got == pytest.approx(wanted[kind], abs=1e-12)
    assert found[1].tolist() == [0.0] * 3, "and not NaN or a rounding error"


def test_the_loss_of_a_token_is_clipped_on_the_side_that_helps() -> None:
    ratios = torch.tensor([[0.5, 0.9, 1.1, 2.0]] * 2, dtype=torch.float64)
    weights = torch.tensor([1.5, -1.5], dtype=torch.float64)
    losses, found = clipped_losses(ratios.log(), torch.zeros_like(ratios), weights, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(found, ratios)
    for row, advantage in enumerate(weights.tolist()):
        for column, ratio in enumerate(ratios[row].tolist()):
            wanted = -min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
            assert float(losses[row, column]) == pytest.approx(wanted)


def test_k3_is_the_divergence_in_the_mean_and_pulls_towards_the_reference() -> None:
    """Its expectation over samples of π is KL(π ‖ π_ref), and so is its gradient's; −d has none."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.2], dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    estimate = (policy.detach().exp() * k3(policy, reference)).sum()
    divergence = (policy.exp() * (policy - reference)).sum()
    assert float(estimate.detach()) == pytest.approx(float(divergence.detach()))
    assert float(k3(policy, policy).abs().sum().detach()) == 0
    # What autograd sees of the estimate under fixed samples: never negative, so lower is closer.
    assert (k3(policy, reference) >= 0).all()


@pytest.mark.parametrize("normaliser", ["fixed", "targets", "sequence"])
def test_the_step_is_one_mean_whatever_its_micro_batches(normaliser: str) -> None:
    """Answers of unequal lengths, in one batch and in three, give the loss of a loop over tokens."""
    losses = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4)
    counted = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]).bool()
    whole = summed(losses, counted, normaliser)
    parts = sum(summed(losses[i : i + 1], counted[i : i + 1], normaliser) for i in range(3))
    divisors = [divisor(normaliser, answers=1, tokens=int(counted[i].sum()), max_new_tokens=5) for i in range(3)]
    rows = [[float(losses[i, j]) for j in range(4) if counted[i, j]] for i in range(3)]
    wanted = {
        "fixed": sum(map(sum, rows)) / 15,
        "targets": sum(map(sum, rows)) / 7,
        "sequence": sum(sum(row) / len(row) for row in rows) / 3,
    }[normaliser]
    assert sum(divisors) == divisor(normaliser, answers=3, tokens=7, max_new_tokens=5)
    assert float(whole) / sum(divisors) == pytest.approx(wanted) == float(parts) / sum(divisors)


@pytest.mark.parametrize("normaliser", ["fixed", "targets", "sequence"])
def test_the_objective_equals_the_loss_on_full_logits(normaliser: str) -> None:
    """At the sampling temperature; forced tokens and padding have neither loss nor gradient."""
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    inputs = torch.randint(17, (6, 8), generator=generator)
    targets = torch.randint(17, (6, 8), generator=generator)
    targets[torch.rand(6, 8, generator=generator) < 0.4] = IGNORE
    weights = torch.linspace(-1, 1, 6)
    objective = GRPO(model, advantage="mean", normaliser=normaliser, beta=0.4, **SETTINGS)  # type: ignore[arg-type]
    logprobs = (model.logits(model(inputs)) / 0.7).log_softmax(-1)
    counted = targets != IGNORE
    taken = logprobs.gather(2, targets.where(counted, 0)[..., None]).squeeze(2)
    old = taken.detach() + 0.3 * torch.randn(6, 8, generator=generator)
    reference = taken.detach() + 0.5 * torch.randn(6, 8, generator=generator)
    extra = {ADVANTAGE: weights, OLD: old * counted, REFERENCE: reference * counted, PER_TOKEN: torch.tensor(1.0)}
    loss = objective(Batch(inputs=inputs, targets=targets, extra=extra))
    ratio = (taken - old).exp()
    each = -torch.minimum(ratio * weights[:, None], ratio.clamp(0.8, 1.3) * weights[:, None])
    divergence = (reference - taken).exp() - (reference - taken) - 1
    expected = summed(each + 0.4 * divergence, counted, normaliser)
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.metrics["rl/kl"], divergence[counted].sum().detach(), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(loss.total, list(model.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(model.parameters())), rtol=1e-3, atol=1e-4)
    low = (ratio < 0.8) & (weights[:, None] < 0) & counted
    high = (ratio > 1.3) & (weights[:, None] > 0) & counted
    assert (int(loss.metrics["rl/clip_low"]), int(loss.metrics["rl/clip_high"])) == (int(low.sum()), int(high.sum()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_size", 1),
        ("temperature", 0.0),
        ("max_new_tokens", 0),
        ("clip_low", 1.0),
        ("clip_high", 0.0),
        ("beta", -0.1),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value} must be"):
        GRPO(tiny_model(), advantage="mean", normaliser="fixed", **SETTINGS | {name: value})  # type: ignore[arg-type]


def test_by_default_nothing_is_divided_by_a_deviation_or_by_the_length_of_an_answer() -> None:
    """Both are known to favor nearly equal groups and long wrong answers (Liu et al. 2025)."""
    defaults = OmegaConf.load(conf_dir() / "objective" / "grpo.yaml")
    assert (defaults.advantage, defaults.normaliser) == ("mean", "fixed")
