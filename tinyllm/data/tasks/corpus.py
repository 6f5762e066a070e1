"""``dataset=tasks``: conversations about generated problems, whose answers a program can check."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Self, overload

from tinyllm.data.chat.corpus import ConversationCorpus, Filling, Sides, TooLong
from tinyllm.data.chat.messages import Conversation
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.task_set import TaskSet
from tinyllm.errors import UserError

MOST_PROBLEMS = 10**7
"""Problems of a split; they are rendered into memory."""


class TaskPrompts(Sequence[Prompt]):
    """The first ``count`` problems of a split as prompts, each generated when it is asked for."""

    def __init__(self, tasks: TaskSet, side: str, count: int) -> None:
        self.tasks, self.side, self.numbers = tasks, side, range(count)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        chosen = self.numbers[index]
        if isinstance(chosen, range):
            return [self.tasks.prompt(self.side, number) for number in chosen]
        return self.tasks.prompt(self.side, chosen)


class TaskCorpus(ConversationCorpus):
    """Conversations about generated problems; no files are needed.

    The problems of training, validation and test are split by a hash of the problem itself, so that whatever is drawn,
    no problem is in two of them; see :mod:`tinyllm.data.tasks.problem`.

    Args:
        families: kinds of problems, see :class:`TaskSet`.
        n_train: conversations for training.
        n_val: problems of validation, and of the test split.
        seed: seed of the problems.
        tool: name of the tool that the assistant calls where one helps; None: it never does.
        tool_share: share of these problems in which it does.
        short_share: share of answers without a sentence around them.
        unseen_wording: word all problems as no training problem is by default.
        too_long, packing, group_by_length: see :class:`ConversationCorpus`.
        chat_template: renders them.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        families: Sequence[str],
        n_train: int,
        n_val: int,
        seed: int,
        tool: str | None,
        tool_share: float,
        short_share: float,
        unseen_wording: bool,
        too_long: TooLong,
        packing: Filling = "rows",
        group_by_length: bool = True,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        super().__init__(
            path="tasks",
            val_path=None,
            val_fraction=0.1,
            too_long=too_long,
            packing=packing,
            group_by_length=group_by_length,
            chat_template=chat_template,
        )
        for key, value in (("n_train", n_train), ("n_val", n_val)):
            if not 1 <= value <= MOST_PROBLEMS:
                raise UserError("out of range", key=f"dataset.{key}", value=value, hint=f"1 … {MOST_PROBLEMS:,}")
        self.n_train, self.n_val, self.held_out = n_train, n_val, "val"
        self.tasks = TaskSet(
            families=families,
            seed=seed,
            tool=tool,
            tool_share=tool_share,
            short_share=short_share,
            unseen=unseen_wording,
        )

    def check(self) -> None:
        """Refuse families that this Python has no data for.

        Raises:
            UserError: as :func:`tinyllm.data.tasks.words.words`.
        """
        for number in range(len(self.tasks.families)):
            self.tasks.problem("train", number)

    def for_test(self) -> Self:
        """The same problems for training, with those of the test split as validation."""
        other = copy(self)
        other.held_out = "test"
        return other

    def without_training(self) -> Self:
        """The same validation with hardly any training, which an evaluation need not render."""
        other = copy(self)
        other.n_train = 1
        return other

    def conversations(self) -> Iterator[Conversation]:
        return self._of("train", self.n_train)

    def prompts(self, side: str) -> Sequence[Prompt]:
        """The problems of a split as prompts, of ``train`` as many as of the others."""
        return TaskPrompts(self.tasks, side, self.n_val)

    def prompt_splits(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """The problems of training and of validation as prompts, for reinforcement learning."""
        return TaskPrompts(self.tasks, "train", self.n_train), self.prompts(self.held_out)

    def _of(self, side: str, count: int) -> Iterator[Conversation]:
        return (self.tasks.conversation(side, number) for number in range(count))

    def split(self) -> Sides:
        return Sides(list(self.conversations()), list(self._of(self.held_out, self.n_val)), [])
