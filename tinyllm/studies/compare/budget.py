"""How long each arm is trained: the same number of tokens, of FLOPs or of minutes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tinyllm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step of an arm takes."""

    tokens_per_step: int
    flops_per_token: int
    """Of training."""
    tokens_per_s: float | None = None
    """Of training on this machine; None: not measured."""

    @property
    def flops_per_step(self) -> int:
        """Training FLOPs of one step."""
        return self.flops_per_token * self.tokens_per_step


class Budget(ABC):
    """What every arm gets.

    Args:
        amount: for one run; None: what the reference's own horizon takes.

    Raises:
        ValueError: the amount is not positive.
    """

    name: str
    needs_speed = False

    def __init__(self, *, amount: float | None) -> None:
        if amount is not None and not amount > 0:
            raise ValueError(f"amount={amount} must be positive")
        self.amount = amount

    @abstractmethod
    def of(self, cost: Cost, steps: int) -> float:
        """What so many steps take."""

    def given_by(self, reference: Cost, *, steps: int) -> float:
        """The amount for one run.

        Args:
            reference: of the reference arm.
            steps: of its own horizon, which is the amount when none is given.
        """
        return self.of(reference, steps) if self.amount is None else self.amount

    def steps(self, cost: Cost, amount: float, *, arm: str) -> int:
        """How many whole steps of an arm the amount pays for.

        Raises:
            UserError: not even one, so that nothing could be evaluated.
        """
        one = self.of(cost, 1)
        # Amounts that are the exact price of so many steps shall not lose one to rounding.
        steps = int(amount / one * (1 + 1e-12))
        if steps < 1:
            hint = f"one step of {arm}, before which nothing can be evaluated, takes {one:.4g}"
            raise UserError("the budget is too small", key="budget.amount", value=f"{amount:g}", hint=hint)
        return steps


class Tokens(Budget):
    """Training tokens."""

    name = "tokens"

    def of(self, cost: Cost, steps: int) -> float:
        return cost.tokens_per_step * steps


class Flops(Budget):
    """Training FLOPs: three times those of the forward pass."""

    name = "flops"

    def of(self, cost: Cost, steps: int) -> float:
        return cost.flops_per_step * steps


class Minutes(Budget):
    """Minutes of training on this machine, evaluation and saving not counted."""

    name = "minutes"
    needs_speed = True

    def of(self, cost: Cost, steps: int) -> float:
        assert cost.tokens_per_s is not None
        return cost.tokens_per_step * steps / cost.tokens_per_s / 60

    def given_by(self, reference: Cost, *, steps: int) -> float:
        if self.amount is None:
            hint = "minutes of training of one run, e.g. budget.amount=2"
            raise UserError("how many minutes?", key="budget.amount", hint=hint)
        return self.amount
