"""``dataset=preferences``: files of preferences, split by prompt and encoded."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np

from tinyllm.data.batch import PAIRS
from tinyllm.data.chat.messages import Conversation
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.hash_split import share_of
from tinyllm.data.preferences.pairs import Answered, PairData, PairSplit
from tinyllm.data.preferences.records import ChatPreference, Preference, TextPreference, parse_preference
from tinyllm.data.record_corpus import RecordCorpus
from tinyllm.data.split import RULES
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer

TooLong = Literal["error", "drop"]


class PreferenceCorpus(RecordCorpus[Preference]):
    """Preferences from JSON lines or Parquet tables; ``records.parse_preference`` says what a record is.

    The data are read into memory and encoded at every start; they are not cached.

    Args:
        path, name, config, revision, split, val_split: see :class:`tinyllm.data.record_corpus.RecordCorpus`.
        val_path: the same for validation; prompts that are also in it are left out of training.
        val_fraction: fraction of the prompts that becomes validation if there is no ``val_path``; by a hash of the
            prompt, so that no prompt is on both sides, whatever else the files hold.
        too_long: what happens to pairs longer than a training sequence: ``error`` or ``drop``.
        chat_template: renders pairs of conversations; pairs of texts need none.

    Raises:
        UserError: the fraction is out of range.
    """

    gives: ClassVar[str] = PAIRS
    records: ClassVar[str] = "preferences"

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
        self.drops_long = too_long == "drop"
        self.chat_template = chat_template

    @staticmethod
    def parse(record: object, *, place: str) -> Preference:
        """The preference of a record; see :func:`parse_preference`."""
        return parse_preference(record, place=place)

    @property
    def special_tokens(self) -> Sequence[str]:
        """Those that the chat template writes, if the pairs are conversations.

        Raises:
            UserError: the data cannot be read.
        """
        is_chat = isinstance(next(self.read(*self.places()[0])), ChatPreference)
        return self.chat_template.special_tokens if is_chat and self.chat_template is not None else ()

    def prepare(self, trainer: TokenizerTrainer) -> PairData:
        """Read, split and encode the data.

        Raises:
            UserError: a record is no preference, or a split would be empty.
        """
        train, val, notes = self._split()
        tokenizer = trainer.train(texts_of(train)).covering(texts_of(val))
        if self.chat_template is not None and any(isinstance(pair, ChatPreference) for pair in (*train, *val)):
            self.chat_template.require(tokenizer)
        sides = []
        for name, pairs, first in (("train", train, 0), ("val", val, len(train))):
            encoded = [encode_pair(tokenizer, pair, self.chat_template) for pair in pairs]
            sides.append(PairSplit.of(name, encoded, drops_long=self.drops_long, first=first))
        return PairData(train=sides[0], val=sides[1], tokenizer=tokenizer, rules=RULES, notes=notes)

    def _split(self) -> tuple[list[Preference], list[Preference], list[str]]:
        """Training and validation pairs, and remarks."""
        of_training, *of_val = self.places()
        pairs = _distinct(self.read(*of_training))
        for key, place in of_val:
            val = _distinct(self.read(key, place))
            held_out = {pair.key for pair in val}
            train = [pair for pair in pairs if pair.key not in held_out]
            if not train:
                hint = f"use other data, or leave {key} out"
                what = "all training prompts are also in validation"
                raise UserError(what, key=key, value=place, hint=hint)
            left_out = len(pairs) - len(train)
            shared = f"{left_out:,} training pairs whose prompt is also in validation were left out"
            return train, val, [shared] if left_out else []
        sides: tuple[list[Preference], list[Preference]] = [], []
        for pair in pairs:
            sides[share_of(pair.key) < self.val_fraction].append(pair)
        if not all(sides):
            n_prompts = len({pair.key for pair in pairs})
            prompts = f"{n_prompts} different prompt{'s' * (n_prompts != 1)}"
            what = f"the {'validation' if sides[0] else 'training'} split is empty"
            hint = f"there are {prompts}, divided by a hash; use more, change the fraction, or give dataset.val_path"
            raise UserError(what, key="dataset.val_fraction", value=self.val_fraction, hint=hint)
        return *sides, []


def _distinct(pairs: Iterable[Preference]) -> list[Preference]:
    """The preferences without copies of earlier ones."""
    return list({pair.identity: pair for pair in pairs}.values())


def encode_pair(
    tokenizer: Tokenizer, pair: Preference, template: ChatTemplate | None = None
) -> tuple[Answered, Answered]:
    """Both answers of a pair, each after its prompt.

    Args:
        template: renders pairs of conversations.

    Raises:
        UserError: the template refuses a conversation, or the tokenizer cannot express a text.
    """
    if isinstance(pair, TextPreference):
        return encode_answer(tokenizer, pair.prompt, pair.chosen), encode_answer(tokenizer, pair.prompt, pair.rejected)
    assert template is not None, "conversations need a chat template"
    head = template.render(pair.beginning, tokenizer, add_generation_prompt=True).ids
    return (
        _rendered(template, pair.chosen, head, tokenizer),
        _rendered(template, pair.rejected, head, tokenizer),
    )


def _rendered(template: ChatTemplate, conversation: Conversation, head: np.ndarray, tokenizer: Tokenizer) -> Answered:
    """A conversation whose targets are what the assistant says after the prompt ``head``."""
    ids, is_target = template.render(conversation, tokenizer)
    if not np.array_equal(ids[: len(head)], head):
        template.check_prompts(conversation)  # says which message is to blame
    is_target = is_target & (np.arange(len(ids)) >= len(head))
    end = int(np.flatnonzero(is_target)[-1]) + 1  # what a template writes after the last turn is never read
    return Answered(ids[:end], is_target[:end])


def encode_answer(tokenizer: Tokenizer, prompt: str, answer: str) -> Answered:
    """A prompt and its answer as a model continues it: begin-of-text if the model expects it, and end-of-text.

    The two texts are encoded apart, so that the prompt has the ids that it has in generation.
    """
    plain = tokenizer.matching(False) if tokenizer.match_special else tokenizer
    head = plain.encode(prompt)
    if tokenizer.begin_id is not None and (tokenizer.adds_bos or not len(head)):
        head = np.concatenate([[tokenizer.begin_id], head])
    tail = plain.encode(answer)
    if tokenizer.eot_id is not None:
        tail = np.concatenate([tail, [tokenizer.eot_id]])
    is_target = np.repeat([False, True], [len(head), len(tail)])
    return Answered(np.concatenate([head, tail]).astype(np.int64), is_target)


def texts_of(pairs: Iterable[Preference]) -> Iterator[str]:
    """All texts, for training a tokenizer."""
    for pair in pairs:
        yield from pair.texts()
