"""The number of steps that a budget pays for."""

import pytest

from tinyllm.errors import UserError
from tinyllm.studies.compare.budget import Budget, Flops, Minutes, Tokens, TrainingCost

REFERENCE = TrainingCost(tokens_per_step=1024, flops_per_token=6_000_000, tokens_per_s=10_000.0)
EXPENSIVE = TrainingCost(tokens_per_step=1024, flops_per_token=9_000_000, tokens_per_s=7_000.0)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [(Tokens(amount=None), 600), (Flops(amount=None), 400), (Minutes(amount=600 * 1024 / 10_000 / 60), 420)],
)
def test_every_arm_gets_the_same_amount(budget: Budget, steps: int) -> None:
    amount = budget.for_run(REFERENCE, steps=600)
    assert budget.steps(REFERENCE, amount, arm="a") == 600
    assert budget.steps(EXPENSIVE, amount, arm="b") == steps


@pytest.mark.parametrize("steps", [1, 3, 7, 49, 10**6 + 1])
@pytest.mark.parametrize("budget", [Tokens(amount=None), Flops(amount=None)])
def test_rounding_costs_the_reference_no_step(budget: Budget, steps: int) -> None:
    assert budget.steps(REFERENCE, budget.for_run(REFERENCE, steps=steps), arm="a") == steps


def test_a_given_amount_replaces_the_references_horizon() -> None:
    assert Tokens(amount=2e6).for_run(REFERENCE, steps=5) == 2e6
    assert Tokens(amount=2e6).steps(REFERENCE, 2e6, arm="a") == 2_000_000 // 1024
    assert Flops(amount=1e12).steps(EXPENSIVE, 1e12, arm="a") == 10**12 // (9_000_000 * 1024)


def test_invalid_budgets() -> None:
    with pytest.raises(UserError, match=r"the budget is too small \(budget.amount=1000\): one step of mla takes 1024"):
        Tokens(amount=1000).steps(REFERENCE, 1000, arm="mla")
    with pytest.raises(UserError, match="no time budget given"):
        Minutes(amount=None).for_run(REFERENCE, steps=1)
    with pytest.raises(ValueError, match="amount=0 must be positive"):
        Tokens(amount=0)


def test_generated_tokens_count_in_tokens_and_in_flops() -> None:
    """A step that generates takes a third of the FLOPs for each generated token, as it has no backward pass."""
    answers = TrainingCost(
        tokens_per_step=1000, flops_per_token=6_000, generated_per_step=500, flops_per_generated=2_000
    )
    assert Tokens(amount=None).price(answers, 4) == 4 * 1500
    assert Flops(amount=None).price(answers, 4) == 4 * (6_000_000 + 1_000_000)
