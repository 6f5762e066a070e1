"""Tasks: sums, differences and products of whole numbers of one to three digits."""

from tinyllm.data.tasks.problem import Dice, Family, Problem, worded
from tinyllm.utils.expressions import evaluate

OPERATIONS = {"add": "+", "subtract": "-", "multiply": "*"}
MOST_DIGITS = 3


class Arithmetic(Family):
    """``a + b``, ``a - b`` and ``a * b``."""

    name = "arithmetic"

    def draw(self, dice: Dice, *, unseen: bool) -> Problem:
        operation = dice.of(list(OPERATIONS))
        a, b = _number(dice), _number(dice)
        call = f"{a}{OPERATIONS[operation]}{b}"
        smaller, larger = sorted((a, b))  # so that a + b and b + a are one problem
        return Problem(
            family=self.name,
            key=f"{OPERATIONS[operation]}|{smaller}|{larger}",
            question=worded(operation, dice, unseen=unseen, a=a, b=b),
            answer=evaluate(call),
            call=call,
        )


def _number(dice: Dice) -> int:
    """A number of one to three digits, each length equally often."""
    digits = 1 + dice.below(MOST_DIGITS)
    lowest = 10 ** (digits - 1) if digits > 1 else 0
    return lowest + dice.below(10**digits - lowest)
