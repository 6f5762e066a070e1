"""The interface of a reward, and the weighted sum of several."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyllm.data.chat.messages import Message
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A generated answer.

    Attributes:
        text: what the assistant says after its last call of a tool; all it says if it makes none.
        tokens: generated tokens; those of tools' results do not count.
        ended: the turn was ended by its stop token, and not by a limit.
        calls: calls of tools, wrong ones included.
        errors: calls whose result was an error.
        messages: the whole answer: calls with their results, and what the assistant says after them; empty: it is
            ``text`` alone.
    """

    text: str
    tokens: int
    ended: bool
    calls: int = 0
    errors: int = 0
    messages: tuple[Message, ...] = ()


class Reward(ABC):
    """Scores of answers. The keyword arguments of the constructor are the keys of the option file.

    Args:
        weight: factor in the sum of all rewards; negative: a cost.
    """

    reads_answer = False
    """Whether it needs the right answer of every prompt."""
    digest: str | None = None
    """sha256 of the weights that the scores depend on; None: they depend on none."""

    def __init__(self, *, weight: float) -> None:
        if not math.isfinite(weight) or weight == 0:
            hint = "a number other than 0; leave the reward out if it shall not count"
            raise UserError("not a weight", key=f"reward.{_name(self)}.weight", value=weight, hint=hint)
        self.weight = weight

    def check(self, prompts: Sequence[Prompt], *, tokenizer: Tokenizer, max_new_tokens: int) -> None:  # noqa: B027
        """Refuse prompts whose answers it could not score; most rewards score any. Called before the first answer.

        Args:
            tokenizer: that answers are written in.
            max_new_tokens: most tokens that the model chooses for an answer.

        Raises:
            UserError: says what would fail.
        """

    @abstractmethod
    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """One score per completion, before the weight; completion i answers prompt i."""


class Rewards:
    """The weighted sum of rewards.

    Args:
        rewards: by name.

    Raises:
        UserError: there are none.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        if not rewards:
            hint = "choose at least one, e.g. reward=[exact] or reward=[exact,tool_cost]"
            raise UserError("no reward", key="reward", value="[]", hint=hint)
        self.rewards = dict(rewards)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every reward that has one, by its name."""
        return {name: reward.digest for name, reward in self.rewards.items() if reward.digest is not None}

    def check(self, prompts: Sequence[Prompt], *, tokenizer: Tokenizer, max_new_tokens: int) -> None:
        """Refuse prompts without an answer if a reward reads it, and those that :meth:`Reward.check` of one refuses.

        Args:
            tokenizer: that answers are written in.
            max_new_tokens: most tokens that the model chooses for an answer.

        Raises:
            UserError: naming the prompt, or the limit.
        """
        readers = [name for name, reward in self.rewards.items() if reward.reads_answer]
        for prompt in prompts if readers else ():
            if prompt.answer is None:
                hint = f"reward={readers[0]} compares with it; add the field, or choose another reward"
                raise UserError("a prompt has no answer", file=prompt.name, hint=hint)
        for reward in self.rewards.values():
            reward.check(prompts, tokenizer=tokenizer, max_new_tokens=max_new_tokens)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[float]]:
        """The scores of every reward by its name, before the weights, and ``""``, their weighted sum.

        Raises:
            UserError: a reward gave a number that is not finite, or not one number per completion.
        """
        found: dict[str, list[float]] = {}
        for name, reward in self.rewards.items():
            values = reward.scores(prompts, completions)
            if len(values) != len(completions):
                hint = f"{type(reward).__name__}.scores must give one number per completion"
                what = f"the reward gave {len(values)} numbers for {len(completions)} completions"
                raise UserError(what, key=f"reward.{name}", value=type(reward).__name__, hint=hint)
            for prompt, value in zip(prompts, values, strict=True):
                if not math.isfinite(value):
                    hint = f"for the prompt {prompt.name}"
                    raise UserError("the reward is not a finite number", key=f"reward.{name}", value=value, hint=hint)
            found[name] = [float(value) for value in values]
        weighted = ([reward.weight * value for value in found[name]] for name, reward in self.rewards.items())
        found[""] = [math.fsum(each) for each in zip(*weighted, strict=True)]
        return found


def _name(reward: Reward) -> str:
    """The option's name, for messages: ``ToolCost`` is ``tool_cost``."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in type(reward).__name__).lstrip("_")
