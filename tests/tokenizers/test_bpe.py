"""BPE training: vocabulary, special tokens, small and huge texts, errors."""

import subprocess
import sys

import pytest

from tests.tokenizers.conftest import ENGLISH
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.bpe import BPETrainer


def trainer(**changes) -> BPETrainer:
    return BPETrainer(**{"vocab_size": 300, "min_frequency": 2, "special_tokens": ["<|endoftext|>"]} | changes)


def test_small_text_gives_fewer_entries_and_a_note() -> None:
    asked = trainer(vocab_size=32000)
    tokenizer = asked.train([ENGLISH])
    assert tokenizer.vocab_size < 32000
    assert asked.notes(tokenizer) == [
        f"The training text yields {tokenizer.vocab_size:,} vocabulary entries, fewer than the 32,000 requested."
    ]


def test_enough_text_gives_the_requested_vocab_size() -> None:
    asked = trainer(vocab_size=280)
    tokenizer = asked.train([ENGLISH] * 5)
    assert tokenizer.vocab_size == 280
    assert asked.notes(tokenizer) == []


def test_all_bytes_are_in_the_vocabulary(bpe: Tokenizer) -> None:
    assert bpe.unk_id is None
    assert bpe.decode(bpe.encode("zebra € 🦓")) == "zebra € 🦓"


def test_text_that_spells_a_special_token_stays_text(bpe: Tokenizer) -> None:
    text = "one<|endoftext|>two"
    assert bpe.eot_id not in bpe.encode(text)
    assert bpe.eot_id not in bpe.encode_batch([text])[0]
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode([bpe.eot_id]) == ""


@pytest.mark.parametrize(
    ("special", "end"),
    [([], None), (["<doc>"], 0), (["<doc>", "</s>"], 1), (["<pad>", "<|endoftext|>", "</s>"], 1)],
)
def test_which_special_token_ends_documents(special: list[str], end: int | None) -> None:
    tokenizer = trainer(special_tokens=special).train([ENGLISH])
    assert tokenizer.eot_id == end
    assert type(tokenizer).from_dict(tokenizer.to_dict()).eot_id == end  # and it survives saving
    assert tokenizer.token_bytes()[: len(special)].sum() == 0


def test_training_does_not_depend_on_chunks() -> None:
    tokenizer = trainer().train([ENGLISH * 20])
    pieces = list(tokenizer.pieces([ENGLISH * 20], 50))
    assert len(pieces) > 10
    assert trainer().train(pieces).fingerprint() == tokenizer.fingerprint()


def test_training_is_deterministic_across_processes() -> None:
    code = "from tests.tokenizers.test_bpe import ENGLISH, trainer\nprint(trainer().train([ENGLISH] * 3).fingerprint())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == trainer().train([ENGLISH] * 3).fingerprint()


def test_huge_corpus_is_subsampled_evenly(monkeypatch) -> None:
    monkeypatch.setattr("tinyllm.tokenizers.bpe.LEARN_FROM_BYTES", 100)
    texts = [f"word{i} " * 20 for i in range(10)]
    few = trainer().train(iter(texts), size=250)
    assert few.fingerprint() == trainer().train(texts[::3]).fingerprint()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"vocab_size": 256}, "tokenizer.vocab_size"),
        ({"vocab_size": -1}, "tokenizer.vocab_size"),
        ({"min_frequency": 0}, "tokenizer.min_frequency"),
        ({"special_tokens": ["a", "a"]}, "tokenizer.special_tokens"),
        ({"special_tokens": [""]}, "tokenizer.special_tokens"),
    ],
)
def test_settings_that_cannot_work(changes: dict, key: str) -> None:
    with pytest.raises(UserError) as caught:
        trainer(**changes)
    assert caught.value.key == key


def test_different_settings_have_different_fingerprints() -> None:
    prints = {
        trainer().fingerprint(),
        trainer(vocab_size=301).fingerprint(),
        trainer(min_frequency=3).fingerprint(),
    }
    assert len(prints) == 3
