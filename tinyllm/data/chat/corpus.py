"""``dataset=chat``: files of conversations, split by prompt and rendered."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

from tinyllm.data.batch import TOKENS
from tinyllm.data.chat.messages import ASSISTANT, USER, Conversation, parse_conversation
from tinyllm.data.chat.rows import ConversationData, ConversationSplit
from tinyllm.data.chat.template import ChatTemplate, Packaged, Rendered
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.prompts import Prompt
from tinyllm.data.record_corpus import RecordCorpus, read_all
from tinyllm.data.split import RULES
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer

TooLong = Literal["error", "drop"]
Filling = Literal["rows", "best_fit"]
CONVERSATIONS = "conversations"
BLOCK = 2048
"""Conversations that are rendered together."""


class Sides(NamedTuple):
    """The conversations of a data set, before they are rendered.

    Attributes:
        train, val: of both splits.
        notes: remarks for the user.
    """

    train: list[Conversation]
    val: list[Conversation]
    notes: list[str]

    def without(self, held_out: set[str]) -> "Sides":
        """Training without the conversations with these prompts (see :func:`key_of`)."""
        train = [conversation for conversation in self.train if key_of(conversation) not in held_out]
        left_out = len(self.train) - len(train)
        shared = f"{left_out:,} training conversations whose prompt is also in validation were left out."
        return Sides(train, self.val, [*self.notes, *[shared] * bool(left_out)])

    def fingerprint(self) -> str:
        """sha256 (hex) of all conversations."""
        digest = hashlib.sha256()
        for name, conversations in (("train", self.train), ("val", self.val)):
            digest.update(name.encode())
            for conversation in conversations:
                digest.update(f"{conversation.to_json()}\n".encode())
        return digest.hexdigest()


class ConversationCorpus(RecordCorpus[Conversation]):
    """Conversations from JSON lines or Parquet tables, in OpenAI's form or ShareGPT's.

    The data are read into memory and rendered at every start; they are not cached.

    Args:
        path, name, config, revision, split, val_split: see :class:`tinyllm.data.record_corpus.RecordCorpus`.
        val_path: the same for validation; conversations whose prompt is also in it are left out of training.
        val_fraction: fraction of the conversations that becomes validation if there is no ``val_path``, chosen by a
            hash of the prompt: what precedes the first answer. So no prompt is on both sides.
        too_long: what happens to conversations longer than a training sequence: ``error`` or ``drop``.
        packing: how conversations fill training windows: ``rows`` (each is a row, those of like length together) or
            ``best_fit`` (whole conversations are packed; see :class:`tinyllm.data.chat.packed.PackedConversations`).
        group_by_length: rows of like length share a batch; see :class:`tinyllm.data.chat.rows.ConversationSource`.
        chat_template: renders them.

    Raises:
        UserError: the fraction is out of range.
    """

    gives: ClassVar[str] = TOKENS
    records: ClassVar[str] = CONVERSATIONS

    def __init__(
        self,
        *,
        path: str | None,
        val_path: str | None,
        val_fraction: float,
        too_long: TooLong,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        packing: Filling = "rows",
        group_by_length: bool = True,
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
        self.drops_long, self.packing, self.chat_template = too_long == "drop", packing, chat_template
        self.group_by_length = group_by_length

    @staticmethod
    def parse(record: object, *, place: str) -> Conversation:
        """The conversation of a record; see :func:`parse_conversation`."""
        return parse_conversation(record, place=place)

    @property
    def special_tokens(self) -> Sequence[str]:
        """Those that the template writes."""
        return self.chat_template.special_tokens

    def for_test(self) -> Self:
        """Files have no test split.

        Raises:
            UserError: always.
        """
        hint = "conversations have val and train; name other files with dataset.path and dataset.val_path"
        raise UserError("the data set has no test split", key="split", value="test", hint=hint)

    def count_words(self, split: str, hashes: ContentHashes) -> None:
        """No paper reports a perplexity per word of conversations."""

    def conversations(self) -> Iterator[Conversation]:
        """Those of training, in order."""
        return self.read(*self.places()[0])

    def questions(self) -> tuple[list[Prompt], list[Prompt]]:
        """The conversations of training and of validation up to their last question, with the answers they hold.

        Raises:
            UserError: a record is no conversation, or a split would be empty.
        """
        train, val, _ = self.split()
        return questions_in(train, "train"), questions_in(val, "val")

    def prepare(self, trainer: TokenizerTrainer) -> ConversationData:
        """Read, split and render the data.

        Raises:
            UserError: a record is no conversation, a split would be empty, or the template refuses a conversation.
        """
        sides = self.split()
        tokenizer = trainer.train(self.texts(sides.train), n_documents=len(sides.train))
        return self.encoded(sides, tokenizer.covering(self.texts(sides.val)))

    def texts(self, conversations: Iterable[Conversation]) -> Iterator[str]:
        """The texts between special tokens, for training a tokenizer."""
        for conversation in conversations:
            yield from self.chat_template.plain_texts(conversation)

    def encoded(self, sides: Sides, tokenizer: Tokenizer) -> ConversationData:
        """The conversations of both splits, rendered.

        Raises:
            UserError: the template refuses one, or the tokenizer lacks one of its tokens.
        """
        train, val, notes = sides
        template = self.chat_template
        template.require(tokenizer)
        if not isinstance(template, Packaged):  # these are tested
            for conversation in (*train, *val):
                template.check_prompts(conversation)
        splits = [
            ConversationSplit.of(
                name,
                self._rendered(conversations, tokenizer),
                drops_long=self.drops_long,
                tokenizer=tokenizer,
                packing=self.packing,
                group_by_length=self.group_by_length,
            )
            for name, conversations in (("train", train), ("val", val))
        ]
        return ConversationData(
            train=splits[0],
            val=splits[1],
            tokenizer=tokenizer,
            rules=RULES,
            chat_template=template,
            first_prompt=prompt_of(val[0]),
            notes=notes,
        )

    def _rendered(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> Iterator[Rendered]:
        """The conversations, rendered block by block: their texts in pieces take many times the memory of the ids."""
        blocks = (conversations[start : start + BLOCK] for start in range(0, len(conversations), BLOCK))
        rendered = (row for block in blocks for row in self.chat_template.render_all(block, tokenizer))
        for conversation, row in zip(conversations, rendered, strict=True):
            if not row.is_target[1:].any():
                said = json.dumps(conversation.to_dict(), ensure_ascii=False)[:80]
                hint = f"{said}…; the template's generation marks enclose none of it"
                raise UserError("a conversation without a target", key="dataset.path", value=self.path, hint=hint)
            yield row

    def split(self) -> Sides:
        """The conversations of training and of validation.

        Raises:
            UserError: a record is no conversation, or a split would be empty.
        """
        found = list(self.conversations())
        if len(places := self.places()) > 1:
            key, place = places[1]
            val = list(self.read(key, place))
            held_out = set(map(key_of, val))
            apart = Sides(found, val, []).without(held_out)
            if not apart.train:
                hint = f"use other data, or leave {key} out"
                what = "all training conversations are also in validation"
                raise UserError(what, key=key, value=place, hint=hint)
            return apart
        groups: dict[str, list[Conversation]] = {}
        for conversation in found:
            groups.setdefault(key_of(conversation), []).append(conversation)
        if len(groups) < 2:
            hint = f"{len(found):,} with the same prompt cannot be divided; use more, or give dataset.val_path"
            raise UserError("too few conversations", key="dataset.path", value=self.path, hint=hint)
        held_out, count = set(), 0
        for key in sorted(groups)[:-1]:
            if held_out and count + len(groups[key]) > self.val_fraction * len(found):
                break
            held_out.add(key)
            count += len(groups[key])
        sides: tuple[list[Conversation], list[Conversation]] = [], []
        for conversation in found:
            sides[key_of(conversation) in held_out].append(conversation)
        return Sides(*sides, [])


def read_conversations(key: str, path: str) -> Iterator[Conversation]:
    """The conversations of a file, a folder or a glob.

    Args:
        key: the setting that names them, for error messages.

    Raises:
        UserError: there are none, or a record is none.
    """
    return read_all(key, path, parse=parse_conversation, records=CONVERSATIONS)


def prompt_of(conversation: Conversation) -> Conversation:
    """What precedes the first answer; if the assistant begins, its first message alone."""
    messages = conversation.messages
    first = next(number for number, message in enumerate(messages) if message.role == ASSISTANT)
    return Conversation(messages[: max(first, 1)], conversation.tools)


def questions_in(conversations: Iterable[Conversation], name: str) -> list[Prompt]:
    """Conversations up to their last question, each once; those without a question are left out.

    Args:
        name: of the split, for messages.
    """
    found: dict[str, Prompt] = {}
    for number, conversation in enumerate(conversations, start=1):
        messages = conversation.messages
        last = next((place for place, message in reversed(list(enumerate(messages))) if message.role == USER), None)
        if last is not None:
            asked, final = Conversation(messages[: last + 1], conversation.tools), messages[-1]
            answer = final.content if final.role == ASSISTANT else None
            prompt = Prompt(conversation=asked, name=f"{name} conversation {number}", answer=answer)
            found.setdefault(asked.to_json(), prompt)
    return list(found.values())


def key_of(conversation: Conversation) -> str:
    """sha256 (hex) of the prompt: conversations with equal prompts are on the same side of the split."""
    return hashlib.sha256(prompt_of(conversation).to_json().encode()).hexdigest()
