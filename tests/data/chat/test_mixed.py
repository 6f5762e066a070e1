"""Conversations beside texts in a mixture: one tokenizer, windows of one length, no prompt on two sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import text_corpus
from tests.support.chats import record, write_records
from tests.support.training_runs import write_corpus
from tinyllm.data.chat.corpus import ConversationCorpus, key_of
from tinyllm.data.chat.template import Roles
from tinyllm.data.mixture import Mixture
from tinyllm.data.mixture_data import MixtureData
from tinyllm.data.prepare_mixture import _Shared, cached_mixture, prepare_mixture
from tinyllm.data.run_data import masks_targets, train_sources
from tinyllm.data.sample_span import SampleSpan
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.char import CharTrainer

SEQ_LEN = 256


def chats(path: Path, **settings: Any) -> ConversationCorpus:
    given = {"val_path": None, "val_fraction": 0.2, "too_long": "drop", "packing": "best_fit"} | settings
    return ConversationCorpus(path=str(path), chat_template=Roles(), **given)


def prepared(mixture: Mixture, cache: Path, trainer: Any = None) -> MixtureData:
    trainer = trainer or CharTrainer(special_tokens="auto")
    trainer.reserve(mixture.special_tokens)
    return prepare_mixture(mixture, trainer, cache_dir=cache)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return {
        "chat": write_records(folder / "c.jsonl", [record(seed) for seed in range(60)]),
        "other": write_records(folder / "o.jsonl", [record(seed) for seed in range(40, 100)]),
        "text": write_corpus(folder / "t.txt", n_words=2000),
    }


@pytest.fixture(scope="module")
def data(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MixtureData:
    sources = {"chat": chats(files["chat"]), "text": text_corpus(files["text"])}
    mixture = Mixture(sources=sources, weights={"chat": 3, "text": 1}, schedule=None)
    return prepared(mixture, tmp_path_factory.mktemp("cache"))


def test_windows_of_both_have_one_length_and_come_by_weight(data: MixtureData) -> None:
    sources = train_sources(data, seq_len=SEQ_LEN, seed=1)
    span = SampleSpan(total=40, per_step=4)
    order = data.order(sources, span)
    batch = order.batch(np.arange(40))
    assert batch.inputs.shape == (40, SEQ_LEN) and batch.doc_ids is not None and masks_targets(data)
    masked = (batch.targets == IGNORE).any(1)
    assert masked.sum() == 30, "three of four windows hold conversations"
    alone = order.batch(np.array([17]))
    assert (alone.inputs[0] == batch.inputs[17]).all() and (alone.targets[0] == batch.targets[17]).all()
    notes = data.order_notes(sources, span)
    assert notes[0].startswith("chat: ") and notes[0].endswith("were left out.") and "read chat " in notes[1]
    assert len({one.tokenizer.fingerprint() for one in data.sources.values()}) == 1
    assert set(data.fingerprints()) == {"train", "val", "tokenizer"} | {
        f"{side}.{name}" for side in ("train", "val") for name in ("chat", "text")
    }


def test_no_prompt_is_trained_on_and_validated_on(files: dict[str, Path], tmp_path: Path) -> None:
    corpora = {"chat": chats(files["chat"]), "other": chats(files["other"], val_fraction=0.5)}
    mixture = Mixture(sources=corpora, weights=None, schedule=None)
    trainer = CharTrainer(special_tokens="auto")
    trainer.reserve(mixture.special_tokens)
    held = _Shared(mixture, trainer, tmp_path, 2, lambda *_: None).chats
    train = {key_of(one) for chat in held.values() for one in chat.sides.train}
    val = {key_of(one) for chat in held.values() for one in chat.sides.val}
    assert train and val and not train & val
    assert any("also in validation were left out" in note for chat in held.values() for note in chat.sides.notes)
    apart = [corpus.split() for corpus in corpora.values()]
    assert {key_of(one) for sides in apart for one in sides.train} & val, "each by itself would have trained on some"


def test_the_tokenizer_learns_from_both_and_depends_on_both(files: dict[str, Path], tmp_path: Path) -> None:
    text, cache = text_corpus(files["text"]), tmp_path / "cache"

    def vocabulary(chat: Path, weights: dict[str, float]) -> MixtureData:
        mixture = Mixture(sources={"text": text, "chat": chats(chat)}, weights=weights, schedule=None)
        return prepared(mixture, cache, BPETrainer(vocab_size=400, min_frequency=2, special_tokens="auto"))

    first = vocabulary(files["chat"], {"text": 1, "chat": 1})
    assert " apples" in {first.tokenizer.decode([i]) for i in range(400)}, "a word of the conversations alone"
    assert first.tokenizer.fingerprint() == vocabulary(files["chat"], {"text": 1, "chat": 1}).tokenizer.fingerprint()
    assert first.tokenizer.fingerprint() != vocabulary(files["chat"], {"text": 9, "chat": 1}).tokenizer.fingerprint()
    assert first.tokenizer.fingerprint() != vocabulary(files["other"], {"text": 1, "chat": 1}).tokenizer.fingerprint()
    mixture = Mixture(sources={"text": text, "chat": chats(files["chat"])}, weights=None, schedule=None)
    assert cached_mixture(mixture, CharTrainer()) is None, "conversations are not cached"


def test_rows_of_their_own_lengths_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"dataset.sources.chat.packing=rows.*add dataset.packing=best_fit"):
        Mixture(sources={"chat": chats(files["chat"], packing="rows")}, weights=None, schedule=None)


def test_characters_of_validation_alone_are_known(files: dict[str, Path], tmp_path: Path) -> None:
    val = write_records(tmp_path / "v.jsonl", [{"messages": [{"role": "user", "content": "Ω"}, *ANSWER]}])
    sources = {"text": text_corpus(files["text"]), "chat": chats(files["chat"], val_path=str(val))}
    data = prepared(Mixture(sources=sources, weights=None, schedule=None), tmp_path / "cache")
    assert data.tokenizer.unk_id is not None and data.tokenizer.unk_id in data.splits("val")["chat"].ids


ANSWER = [{"role": "assistant", "content": "Ω is a letter"}]
