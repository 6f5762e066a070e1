"""Rewards for right answers."""

from collections.abc import Sequence

from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.answers import answer_in
from tinyllm.inference.rewards.base import Completion, Reward
from tinyllm.utils.expressions import ExpressionError, value_of

TOLERANCE = 1e-9
"""Relative difference of two numbers that count as equal."""


class Exact(Reward):
    """1 for the right answer, alone or in one of the sentences that tasks use, else 0.

    An answer that was cut off by a limit is wrong, even if it begins right.
    """

    reads_answer = True

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [
            float(completion.ended and prompt.accepts(completion.text))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


class Expression(Reward):
    """1 for an expression with the value of the answer, such as ``6*7`` or ``42.0`` for ``42``, else 0.

    Expressions are computed by a bounded walk over their syntax tree (``tinyllm.utils.expressions``), never executed.
    """

    reads_answer = True

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [
            float(completion.ended and self._equal(prompt, answer_in(completion.text)))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _equal(self, prompt: Prompt, answer: str) -> bool:
        if prompt.problem is not None and prompt.problem.is_function:
            return prompt.problem.accepts(answer)
        try:
            value, wanted = value_of(answer), value_of(prompt.answer or "")
        except ExpressionError:
            return False
        if isinstance(value, int | float) and isinstance(wanted, int | float):
            return abs(value - wanted) <= TOLERANCE * max(abs(value), abs(wanted))
        return bool(type(value) is type(wanted) and value == wanted)
