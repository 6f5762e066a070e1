"""The budget of an arm: equal tokens, FLOPs or minutes of training for all."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tinyllm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The cost of training an arm."""

    tokens_per_step: int
    flops_per_token: int
    """Training FLOPs, forward and backward."""
    tokens_per_s: float | None = None
    """Training speed on this machine; None: not measured."""
    generated_per_step: int = 0
    """Tokens that the model generates for a step, at most."""
    flops_per_generated: int = 0
    """FLOPs of the forward pass for one of these."""

    @property
    def flops_per_step(self) -> int:
        """FLOPs of one step: of training, and of generating what it trains on."""
        return self.flops_per_token * self.tokens_per_step + self.flops_per_generated * self.generated_per_step


class Budget(ABC):
    """What each run of a comparison may spend.

    Args:
        amount: the budget of one run; None: the cost of the reference's own horizon.

    Raises:
        ValueError: the amount is not positive.
    """

    name: str
    needs_speed = False
    """Whether the arms' training speeds must be measured first."""

    def __init__(self, *, amount: float | None) -> None:
        if amount is not None and not amount > 0:
            raise ValueError(f"amount={amount} must be positive")
        self.amount = amount

    @abstractmethod
    def price(self, cost: TrainingCost, steps: int) -> float:
        """The price of this many steps, in the unit of the budget."""

    def for_run(self, reference: TrainingCost, *, steps: int) -> float:
        """The amount for one run.

        Args:
            reference: costs of the reference arm.
            steps: its own horizon, whose price is the default amount.
        """
        return self.price(reference, steps) if self.amount is None else self.amount

    def steps(self, cost: TrainingCost, amount: float, *, arm: str) -> int:
        """The number of whole steps of an arm that the amount pays for.

        Raises:
            UserError: not even one.
        """
        price = self.price(cost, 1)
        # The slack keeps rounding from losing a step where the amount is exactly the price of a number of steps.
        steps = int(amount / price * (1 + 1e-12))
        if steps < 1:
            hint = f"one step of {arm} takes {price:.4g}; give at least that"
            raise UserError("the budget is too small", key="budget.amount", value=f"{amount:g}", hint=hint)
        return steps


class Tokens(Budget):
    """Training tokens; generated ones count as well, for they take time, too."""

    name = "tokens"

    def price(self, cost: TrainingCost, steps: int) -> float:
        return (cost.tokens_per_step + cost.generated_per_step) * steps


class Flops(Budget):
    """FLOPs of training, three times those of the forward pass, and of generating what is trained on."""

    name = "flops"

    def price(self, cost: TrainingCost, steps: int) -> float:
        return cost.flops_per_step * steps


class Minutes(Budget):
    """Minutes of training on this machine, without evaluation and saving."""

    name = "minutes"
    needs_speed = True

    def price(self, cost: TrainingCost, steps: int) -> float:
        assert cost.tokens_per_s is not None
        return cost.tokens_per_step * steps / cost.tokens_per_s / 60

    def for_run(self, reference: TrainingCost, *, steps: int) -> float:
        if self.amount is None:
            hint = "give the minutes of training of one run, e.g. budget.amount=2"
            raise UserError("no time budget given", key="budget.amount", hint=hint)
        return self.amount
