"""Prompts to be answered: their numbers in the order of training, and files of them (``dataset=prompts``)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from tinyllm.data.batch import PROMPTS, Batch
from tinyllm.data.chat.messages import USER, Conversation, Message, conversation_of
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.hash_split import share_of
from tinyllm.data.prompts import Prompt
from tinyllm.data.record_corpus import RecordCorpus
from tinyllm.data.shuffle import draw, permuted
from tinyllm.data.split import RULES
from tinyllm.data.token_data import OneSource
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer

PROMPT, SAMPLE = "prompt", "sample"
"""Names of the extra tensors (B,) of a batch of prompts: the number of each within its split, and of the sample."""
HASHED = 1000
"""Prompts of a split whose content identifies it, besides their number."""


@dataclass(frozen=True)
class PromptSplit:
    """The prompts of one split, possibly generated when they are asked for."""

    name: str
    prompts: Sequence[Prompt]

    # What a split of tokens has besides.
    row_length: ClassVar[None] = None
    token_bytes: ClassVar[None] = None

    @property
    def n_tokens(self) -> int:
        """Number of prompts: their tokens are not counted, for they may be generated one by one."""
        return len(self.prompts)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of their number and of the first ones."""
        digest = hashlib.sha256(str(len(self.prompts)).encode())
        for number in range(min(HASHED, len(self.prompts))):
            prompt = self.prompts[number]
            digest.update(f"{prompt.conversation.to_json()}\0{prompt.answer}\n".encode())
        return digest.hexdigest()


class PromptSource:
    """The order of training: every prompt once per epoch, each epoch in a new order, as a function of the sample.

    A batch holds numbers of prompts and no tokens; what is trained on are the answers that the model gives.
    """

    def __init__(self, split: PromptSplit, *, seed: int) -> None:
        self.split, self.seed = split, seed
        self.windows_per_epoch = len(split.prompts)

    def batch(self, samples: np.ndarray) -> Batch:
        """The numbers of the prompts of these samples."""
        samples = np.asarray(samples, dtype=np.int64)
        epochs, numbers = samples // self.windows_per_epoch, np.empty_like(samples)
        for epoch in sorted(set(epochs.tolist())):
            chosen = epochs == epoch
            within = samples[chosen] - epoch * self.windows_per_epoch
            numbers[chosen] = permuted(within, self.windows_per_epoch, draw(self.seed, epoch))
        nothing = torch.zeros(len(samples), 1, dtype=torch.int64)
        extra = {PROMPT: torch.from_numpy(numbers), SAMPLE: torch.from_numpy(samples)}
        return Batch(inputs=nothing, targets=torch.full_like(nothing, IGNORE), extra=extra)


@dataclass(frozen=True)
class PromptData(OneSource[PromptSplit]):
    """Prompts ready for training; see :class:`tinyllm.data.run_data.RunData`."""

    train: PromptSplit
    val: PromptSplit
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    rules: int = RULES
    notes: list[str] = field(default_factory=list)

    @property
    def first_prompt(self) -> Conversation:
        """The first prompt of validation, for samples."""
        return self.val.prompts[0].conversation


class PromptCorpus(RecordCorpus[Prompt]):
    """Prompts from JSON lines or Parquet tables: objects with ``prompt`` and, if a reward reads it, ``answer``.

    A prompt is a text, which the user says, or a list of messages.

    Args:
        path, name, config, revision, split, val_split: see :class:`tinyllm.data.record_corpus.RecordCorpus`.
        val_path: the same for validation; prompts that are also in it are left out of training.
        val_fraction: fraction of the prompts that becomes validation if there is no ``val_path``, by a hash.
        chat_template: renders them.

    Raises:
        UserError: the fraction is out of range.
    """

    gives: ClassVar[str] = PROMPTS
    records: ClassVar[str] = "prompts"

    def __init__(
        self,
        *,
        path: str | None,
        val_path: str | None,
        val_fraction: float,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        super().__init__(
            path=path,
            val_path=val_path,
            val_fraction=val_fraction,
            name=name,
            config=config,
            revision=revision,
            split=split,
            val_split=val_split,
        )
        assert chat_template is not None, "the program passes the template"
        self.chat_template = chat_template

    @staticmethod
    def parse(record: object, *, place: str) -> Prompt:
        """The prompt of a JSON record; see :func:`parse_prompt`."""
        return parse_prompt(record, place=place)

    @property
    def special_tokens(self) -> Sequence[str]:
        """Those that the template writes."""
        return self.chat_template.special_tokens

    def prompt_splits(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """The prompts of training and of validation.

        Raises:
            UserError: a record is no prompt, or a split would be empty.
        """
        sides: tuple[list[Prompt], list[Prompt]] = [], []
        of_training, *of_val = self.places()
        every = self._distinct(*of_training)
        if not of_val:
            for prompt in every:
                sides[share_of(prompt.conversation.to_json()) < self.val_fraction].append(prompt)
        else:
            sides[1].extend(self._distinct(*of_val[0]))
            held_out = {prompt.conversation.to_json() for prompt in sides[1]}
            sides[0].extend(prompt for prompt in every if prompt.conversation.to_json() not in held_out)
        if not all(sides):
            what = f"the {'validation' if sides[0] else 'training'} split has no prompts"
            hint = "use more prompts, or change dataset.val_fraction or dataset.val_path"
            raise UserError(what, key="dataset.path", value=self.path, hint=hint)
        return sides

    def _distinct(self, key: str, path: str) -> list[Prompt]:
        return list({prompt.conversation.to_json(): prompt for prompt in self.read(key, path)}.values())


def parse_prompt(record: object, *, place: str) -> Prompt:
    """The prompt of a JSON record.

    Raises:
        UserError: it is not a prompt; the message says why.
    """
    asked = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(asked, str | list) or not asked:
        hint = 'it must be an object, {"prompt": …, "answer": …}'
        raise UserError("not a prompt", file=place, hint=hint)
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str | int | float):
        raise UserError("`answer` is not text", file=place, hint="it must be a string or a number")
    conversation = Conversation((Message(USER, asked),)) if isinstance(asked, str) else None
    if conversation is None:
        assert isinstance(asked, list)
        conversation = conversation_of(asked, tools=record.get("tools"), place=place, complete=False)
    return Prompt(conversation=conversation, name=place, answer=None if answer is None else str(answer))


def prompt_data(corpus: Any, trainer: TokenizerTrainer) -> Any:
    """The prompts of a data set that has any, with the tokenizer that answers are written in.

    Raises:
        UserError: they cannot be read, or the tokenizer lacks a token of the template.
    """
    train, val = corpus.prompt_splits()
    tokenizer = trainer.train([])
    corpus.chat_template.require(tokenizer)
    return PromptData(PromptSplit("train", train), PromptSplit("val", val), tokenizer, corpus.chat_template)
