"""Task sets: numbered problems of several families, as conversations to train on and as prompts to answer."""

import math
from collections.abc import Sequence

from tinyllm.data.chat.messages import ASSISTANT, TOOL, USER, Conversation, Message, ToolCall
from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.answers import SENTENCES, SHORT
from tinyllm.data.tasks.arithmetic import Arithmetic
from tinyllm.data.tasks.functions import Functions
from tinyllm.data.tasks.lookups import Lookups
from tinyllm.data.tasks.problem import SIDES, Dice, Family, Problem
from tinyllm.data.tasks.words import Words
from tinyllm.errors import UserError

FAMILIES: dict[str, Family] = {family.name: family for family in (Arithmetic(), Words(), Lookups(), Functions())}
PROBLEM, STYLE = 0, 1
"""What a random number is for."""


class TaskSet:
    """Problem i of a split is a pure function of (seed, split, i), and so is the conversation about it.

    Args:
        families: names in ``FAMILIES``; problem i is of family i modulo their number.
        seed: seed of the problems.
        tool: name of the tool that the assistant calls, where one helps; None: it never calls one.
        tool_share: share of these problems in which it does.
        short_share: share of answers that are given without a sentence around them.
        unseen: word the problems as no training problem is.

    Raises:
        UserError: an unknown family, or a share outside 0 … 1.
    """

    def __init__(
        self,
        *,
        families: Sequence[str],
        seed: int,
        tool: str | None,
        tool_share: float,
        short_share: float,
        unseen: bool = False,
    ) -> None:
        unknown = [name for name in families if name not in FAMILIES]
        if unknown or not families or len(set(families)) < len(families):
            hint = f"a list of {', '.join(FAMILIES)}, each once"
            what = f"unknown family {unknown[0]}" if unknown else "not a list of families"
            raise UserError(what, key="dataset.families", value=list(families), hint=hint)
        for key, share in (("tool_share", tool_share), ("short_share", short_share)):
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise UserError("not a share", key=f"dataset.{key}", value=share, hint="between 0 and 1")
        self.families, self.seed, self.tool, self.unseen = tuple(families), seed, tool, unseen
        self.tool_share, self.short_share = tool_share, short_share

    def problem(self, side: str, number: int) -> Problem:
        """Problem ``number`` ≥ 0 of the split ``train``, ``val`` or ``test``."""
        family = FAMILIES[self.families[number % len(self.families)]]
        return family.problem(self._dice(side, number, PROBLEM), side, unseen=self.unseen)

    def prompt(self, side: str, number: int) -> Prompt:
        """A problem as a prompt."""
        problem = self.problem(side, number)
        asked = Conversation((Message(USER, problem.question),))
        return Prompt(conversation=asked, name=f"{side} {number}", answer=problem.answer, problem=problem)

    def conversation(self, side: str, number: int) -> Conversation:
        """A problem with its answer, and with the call of the tool that finds it."""
        problem, dice = self.problem(side, number), self._dice(side, number, STYLE)
        calls = problem.call is not None and self.tool is not None and dice.chance(self.tool_share)
        frame = SHORT if dice.chance(self.short_share) else dice.of(SENTENCES)
        messages = [Message(USER, problem.question)]
        if calls:
            assert problem.call is not None and self.tool is not None
            messages.append(Message(ASSISTANT, "", (ToolCall(self.tool, problem.call),)))
            messages.append(Message(TOOL, problem.answer))
        messages.append(Message(ASSISTANT, frame.format(problem.answer)))
        return Conversation(tuple(messages))

    def _dice(self, side: str, number: int, use: int) -> Dice:
        return Dice(self.seed, list(SIDES).index(side), number, use)
