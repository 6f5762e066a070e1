"""Nothing of validation is in training."""

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import text_corpus
from tinyllm.data.corpus import Document, Source
from tinyllm.data.loader import eval_batches
from tinyllm.data.sampler import Sampler
from tinyllm.data.split import split
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.char import CharTrainer

MANY = settings(max_examples=150, deadline=None)


def source_of(texts: list[str], validation: list[str] | None = None) -> Source:
    def documents(texts: list[str]):
        for text in texts:
            data = text.encode()
            yield Document(hashlib.sha256(data).digest(), len(data), partial(iter, [text[:2], text[2:]]))

    return Source("f", partial(documents, texts), None if validation is None else partial(documents, validation))


def texts_of(documents) -> list[str]:
    return ["".join(document.chunks()) for document in documents]


@MANY
@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_documents_are_on_one_side_and_none_is_lost(texts: list[str], fraction: float) -> None:
    if len(set(texts)) == 1:
        return
    parts = split(source_of(texts), fraction)
    train, val = texts_of(parts.train()), texts_of(parts.val())
    assert not set(train) & set(val)
    assert Counter(train) + Counter(val) == Counter(texts)
    assert train and val
    assert parts.train_documents == len(train)
    assert parts.train_size == sum(map(len, train))


@MANY
@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=2, max_size=20, unique=True), st.randoms())
def test_the_choice_does_not_depend_on_the_order(texts: list[str], random) -> None:
    before = set(texts_of(split(source_of(texts), 0.3).val()))
    random.shuffle(texts)
    assert set(texts_of(split(source_of(texts), 0.3).val())) == before


def test_share_of_many_documents() -> None:
    texts = [f"document {i} " + "x" * (i % 50) for i in range(2000)]
    parts = split(source_of(texts), 0.1)
    share = sum(map(len, texts_of(parts.val()))) / sum(map(len, texts))
    assert 0.099 < share <= 0.1


def test_one_huge_document_never_validates() -> None:
    texts = ["huge " * 10_000, *(f"small {i}" for i in range(10))]
    for fraction in (0.01, 0.1, 0.3):
        assert texts[0] not in texts_of(split(source_of(texts), fraction).val())


@MANY
@given(st.text(min_size=2, max_size=200), st.floats(0.01, 0.99))
def test_single_document_is_cut(text: str, fraction: float) -> None:
    parts = split(source_of([text]), fraction)
    head = "".join(texts_of(parts.train()))
    assert head == text[: int(len(text) * (1 - fraction))]
    assert head + "".join(texts_of(parts.val())) == text


def test_copies_of_one_document_are_used_once() -> None:
    parts = split(source_of(["0123456789"] * 3), 0.2)
    assert texts_of(parts.train()) == ["01234567"]
    assert texts_of(parts.val()) == ["89"]
    assert "3 documents are the same" in parts.notes[0]


def test_training_text_that_is_also_in_val_path_is_left_out() -> None:
    parts = split(source_of(["a", "b", "c", "b"], ["b", "x"]), 0.5)
    assert texts_of(parts.train()) == ["a", "c"]
    assert texts_of(parts.val()) == ["b", "x"]
    assert parts.notes == ["2 training documents are also in validation and were left out of training."]
    with pytest.raises(UserError, match=r"all of the training data are in validation"):
        split(source_of(["a"], ["a", "b"]), 0.5)


def test_tinyshakespeare_is_cut_as_nanogpt_does_it(prepared, tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_text()
    data = prepared(text, trainer=CharTrainer())
    n = len(text)
    assert data.train.n_tokens == len(text[: int(n * 0.9)])  # data/shakespeare_char/prepare.py
    assert data.val.n_tokens == len(text[int(n * 0.9) :])
    assert data.tokenizer.vocab_size == 65
    assert data.tokenizer.decode(data.val.read(0, 100)) == text[int(n * 0.9) :][:100]
    assert data.notes == []


def test_no_token_of_validation_is_ever_trained_on(prepared) -> None:
    """The +1 target included: every id says which document it is from."""
    texts = ["".join(chr(0x4E00 + 40 * d + i) for i in range(40)) for d in range(12)]
    data = prepared(*texts, trainer=CharTrainer(), val_fraction=0.25)
    sampler = Sampler(data.train, seq_len=7, seed=0)
    trained = {c for w in sampler.windows(np.arange(10 * sampler.windows_per_epoch)) for c in w}
    text = data.tokenizer.decode(sorted(trained))
    validated = data.val.read(0, data.val.n_tokens)
    assert set(text) <= set(data.tokenizer.alphabet)
    assert (validated[validated != data.tokenizer.eot_id] == data.tokenizer.unk_id).all()  # none was seen
    predicted = sum(int((targets >= 0).sum()) for _, targets in eval_batches(data.val, seq_len=7, batch_size=3))
    assert predicted == data.val.n_tokens - 1


def test_the_tokenizer_learns_from_training_only(prepared) -> None:
    """Validation is full of a word that would be merged at once."""
    texts = ["ab cd ef gh " * 50 + "zzzzzzzz" * 200]
    trainer = BPETrainer(vocab_size=320, min_frequency=2, special_tokens=["<|endoftext|>"])
    data = prepared(*texts, trainer=trainer, val_fraction=0.75)
    vocabulary = data.tokenizer.to_dict()["model"]["vocab"]
    assert "Ġcd" in vocabulary
    assert not any("zz" in token for token in vocabulary)


def test_unseen_characters_are_reported_and_their_bytes_counted(prepared) -> None:
    data = prepared("abc " * 90 + "é€ab" * 10, trainer=CharTrainer())
    assert data.tokenizer.unk_id is not None
    assert data.notes == [
        "20 characters of the validation text are not in the tokenizer's vocabulary and became <unk>; "
        "their 50 bytes are counted."
    ]
    assert data.val.byte_count(0, data.val.n_tokens) == len(("é€ab" * 10).encode())


def test_documents_end_with_an_end_of_text(prepared) -> None:
    texts = [f"document number {i}" for i in range(10)]
    data = prepared(*texts)
    ids = np.concatenate([data.train.read(0, data.train.n_tokens), data.val.read(0, data.val.n_tokens)])
    ends = np.flatnonzero(ids == data.tokenizer.eot_id)
    documents = [data.tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1]]
    assert sorted(documents) == texts
    assert ends[-1] == len(ids) - 1


def test_empty_validation_is_refused(prepared) -> None:
    with pytest.raises(UserError, match=r"validation split has too few tokens: 1.*val_fraction"):
        prepared("abcdefgh", trainer=CharTrainer(), val_fraction=0.0001)


def test_impossible_share_is_refused() -> None:
    with pytest.raises(UserError, match="val_fraction"):
        text_corpus("x", val_fraction=2)
