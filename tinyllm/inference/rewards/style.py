"""Rewards for how an answer is given, whether it is right or not."""

import re
from collections.abc import Sequence

from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.rewards.base import Completion, Reward


class Format(Reward):
    """1 for an answer that matches a pattern from beginning to end and was ended by its stop token, else 0.

    Args:
        pattern: regular expression for the answer without the spaces around it.

    Raises:
        UserError: it is not a regular expression, or accepts an empty answer.
    """

    def __init__(self, *, weight: float, pattern: str) -> None:
        super().__init__(weight=weight)
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError("not a pattern", key="reward.format.pattern", value=pattern, hint=str(error)) from error
        if self.pattern.fullmatch(""):
            hint = "it matches an empty answer, so that saying nothing would be rewarded; ask for a character, e.g. .+"
            raise UserError("not a pattern for answers", key="reward.format.pattern", value=pattern, hint=hint)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [
            float(completion.ended and self.pattern.fullmatch(completion.text.strip()) is not None)
            for completion in completions
        ]


class Length(Reward):
    """0 up to ``target`` generated tokens; every ``target`` tokens more cost 1.

    Args:
        target: tokens that cost nothing.

    Raises:
        UserError: ``target`` is below 1.
    """

    def __init__(self, *, weight: float, target: int) -> None:
        super().__init__(weight=weight)
        if target < 1:
            raise UserError("out of range", key="reward.length.target", value=target, hint="give a whole number ≥ 1")
        self.target = target

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [min(0.0, 1 - completion.tokens / self.target) for completion in completions]


class ToolCost(Reward):
    """−1 for every call of a tool."""

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [-float(completion.calls) for completion in completions]
