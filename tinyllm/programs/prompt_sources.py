"""Prompts for programs that let a trained model answer: those of a data set, or those the run was trained on."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from omegaconf import DictConfig

from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.chat.corpus import ConversationCorpus
from tinyllm.data.prompt_data import PromptCorpus
from tinyllm.data.prompts import Prompt
from tinyllm.data.shuffle import permuted
from tinyllm.data.tasks.corpus import TaskCorpus
from tinyllm.errors import UserError
from tinyllm.inference.answering import Answering
from tinyllm.programs.builders import build_corpus, plain
from tinyllm.programs.conversations import template_of
from tinyllm.programs.saved_model import SavedModel
from tinyllm.utils.seeds import derive_seed

SOURCES = "dataset=tasks, dataset=prompts or dataset=chat"


def open_prompts(
    dataset: DictConfig | None, saved: SavedModel, split: str, *, allow: frozenset[Option]
) -> Sequence[Prompt]:
    """The prompts of one side of a data set, rendered by the template of a model.

    Args:
        dataset: the node of the data set; None: that of the run.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: the data have no prompts or no such side, or cannot be read.
    """
    node = saved.cfg.get("dataset") if dataset is None else dataset
    target = None if node is None else resolve_target(plain(node), path="dataset", extra=allow)
    if target is None or not issubclass(target, PromptCorpus | ConversationCorpus):
        what = "these data have no prompts" if dataset is not None else "the run was not trained on prompts"
        name = None if target is None else target.__name__
        raise UserError(what, key="dataset", value=name, hint=f"choose {SOURCES}")
    corpus = build_corpus(plain(node), allow=allow, **template_of(node, saved, allow=allow))
    if dataset is None:
        corpus.pin(saved.data.get("revision"))
    corpus.check()
    if split == "test":
        if not isinstance(corpus, TaskCorpus):
            raise UserError("the data set has no test split", key="split", value="test", hint="use val or train")
        corpus = corpus.for_test()
    is_chat = isinstance(corpus, ConversationCorpus) and not isinstance(corpus, TaskCorpus)
    train, held_out = corpus.questions() if is_chat else corpus.prompt_splits()
    prompts: Sequence[Prompt] = train if split == "train" else held_out
    if not prompts:
        hint = f"no conversation of it holds a question; choose {SOURCES}"
        raise UserError("the split has no prompts", key="split", value=split, hint=hint)
    return prompts


def in_random_order(count: int, *, seed: int) -> Iterator[int]:
    """The numbers 0 … count−1 in an order that depends on the seed, so that the first ones are a fair sample."""
    key = derive_seed(seed, "prompts")
    return (int(permuted(np.array([number]), count, key)[0]) for number in range(count))


class Fitting:
    """Leaves out prompts that are too long to be answered, and counts them.

    Args:
        answerings: how each model answers, with its context.
        key: the setting of the limit on new tokens, for messages.
    """

    def __init__(self, answerings: Sequence[tuple[Answering, int]], prompts: Sequence[Prompt], *, key: str) -> None:
        self.answerings, self.prompts, self.key = answerings, prompts, key
        self.too_long, self.most_room, self.is_empty = 0, 0, True

    def __call__(self, numbers: Iterable[int]) -> Iterator[int]:
        """Yields the numbers of the prompts that fit."""
        for number in numbers:
            prompt = self.prompts[number]
            room = min(context - len(answering.prompt_ids(prompt)) for answering, context in self.answerings)
            self.most_room = max(room, self.most_room)
            if room >= self.limit:
                self.is_empty = False
                yield number
            else:
                self.too_long += 1

    @property
    def limit(self) -> int:
        """The limit on new tokens."""
        return self.answerings[0][0].max_new_tokens

    def require_some(self) -> None:
        """Refuse prompts of which none fits.

        Raises:
            UserError: none did.
        """
        if self.is_empty:
            hint = f"at most {self.most_room}: the rest of the context is taken by the shortest prompt"
            raise UserError("no prompt and answer fit into the context", key=self.key, value=self.limit, hint=hint)
