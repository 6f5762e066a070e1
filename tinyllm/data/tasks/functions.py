"""Tasks: a Python expression for a described function of x, checked by its values."""

from collections.abc import Callable

from tinyllm.data.tasks.problem import INPUTS, Dice, Family, Problem, worded

STEPS: tuple[tuple[str, str, Callable[[int, int], int]], ...] = (
    ("add {k}", "{e}+{k}", lambda x, k: x + k),
    ("subtract {k}", "{e}-{k}", lambda x, k: x - k),
    ("multiply by {k}", "{f}*{k}", lambda x, k: x * k),
    ("square it", "{f}**2", lambda x, k: x * x),
    ("negate it", "-{f}", lambda x, k: -x),
    ("divide by {k} and drop the rest", "{f}//{k}", lambda x, k: x // k),
    ("keep the rest of dividing by {k}", "{f}%{k}", lambda x, k: x % k),
)
"""What is done to x: in words, as an expression in which {f} is in parentheses if it is more than x, and its value."""


class Functions(Family):
    """One to three steps that start at x. Descriptions of the same function share a key, however they put it."""

    name = "expressions"

    def draw(self, dice: Dice, *, unseen: bool) -> Problem:
        described, expression, values = [], "x", list(INPUTS)
        for _ in range(1 + dice.below(3)):
            (words, template, step), k = dice.of(STEPS), 2 + dice.below(8)
            described.append(words.format(k=k))
            factor = expression if expression == "x" else f"({expression})"
            expression = template.format(e=expression, f=factor, k=k)
            values = [step(x, k) for x in values]
        description = "take x, " + ", then ".join(described)
        return Problem(
            family=self.name,
            key="function|" + "|".join(map(str, values)),
            question=worded("expression", dice, unseen=unseen, d=description),
            answer=expression,
            is_function=True,
        )
