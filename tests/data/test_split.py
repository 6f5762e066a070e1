"""The split: no text is in both training and validation."""

import dataclasses
import hashlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import text_corpus
from tinyllm.data import content_hashes as hashes
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Document, Source, fingerprint_of
from tinyllm.data.loader import eval_batches
from tinyllm.data.prepare import prepare
from tinyllm.data.sampler import Sampler
from tinyllm.data.split import split
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer

MANY = settings(max_examples=150, deadline=None)


def source_of(texts: list[str], validation: list[str] | None = None) -> Source:
    def documents(texts: list[str]):
        for text in texts:
            data = text.encode()
            digest, plain = (hashlib.sha256(form).digest() for form in (data, data.replace(b"\r\n", b"\n")))
            yield Document(digest, len(data), partial(iter, [text[:2], text[2:]]), plain)

    return Source("f", partial(documents, texts), None if validation is None else partial(documents, validation))


def texts_of(documents) -> list[str]:
    return ["".join(document.chunks()) for document in documents]


@MANY
@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_every_document_is_in_exactly_one_split(texts: list[str], fraction: float) -> None:
    if len(set(texts)) == 1:
        return
    parts = split(source_of(texts), fraction, rules=1)
    train, val = texts_of(parts.train()), texts_of(parts.val())
    assert not set(train) & set(val)
    assert Counter(train) + Counter(val) == Counter(texts)
    assert train and val
    assert parts.train_documents == len(train)
    assert parts.train_size == sum(map(len, train))
    now = split(source_of(texts), fraction)
    if not now.notes:  # the share is about right
        assert (texts_of(now.train()), texts_of(now.val())) == (train, val)
        assert fraction / 1.51 < sum(map(len, val)) / sum(map(len, texts)) < fraction * 1.51


@MANY
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=12), st.floats(0.02, 0.9), st.integers(0, 3))
def test_the_fraction_is_met_for_documents_of_any_sizes(sizes: list[int], fraction: float, copies: int) -> None:
    """Approximately; at most one document is cut, and nothing but its copies is lost."""
    letters = "abcdefghijkl"[: len(sizes)]
    texts = [letter * size for letter, size in zip(letters, sizes, strict=True)]
    parts = split(source_of(texts + texts[:1] * copies), fraction)
    train, val = texts_of(parts.train()), texts_of(parts.val())
    in_train, in_val = Counter("".join(train)), Counter("".join(val))
    cut = in_train.keys() & in_val.keys()
    assert len(cut) <= 1
    assert parts.train_documents == len(train)
    for letter, size in zip(letters, sizes, strict=True):
        times = 1 + copies if letter == "a" and "a" not in cut else 1
        assert in_train[letter] + in_val[letter] == size * times
    if not copies and fraction * sum(sizes) > 20:
        share = in_val.total() / sum(sizes)
        assert fraction / 1.6 < share < fraction * 1.6
        assert bool(cut) == bool(parts.notes)


@MANY
@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=2, max_size=20, unique=True), st.randoms())
def test_the_choice_does_not_depend_on_the_order(texts: list[str], random) -> None:
    before = set(texts_of(split(source_of(texts), 0.3).val()))
    random.shuffle(texts)
    assert set(texts_of(split(source_of(texts), 0.3).val())) == before


def test_the_fraction_is_met_with_many_documents() -> None:
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


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ((10**6, 7), 0.1),
        ((5 * 10**5, 48 * 10**4), 0.1),
        ((10**5,) * 5, 0.1),
        ((10**5,) * 6, 0.1),
        ((10**5,) * 7, 1 / 7),
    ],
    ids=["a text and a README", "two books", "five books", "six books", "seven books"],
)
def test_the_fraction_is_met_with_few_documents(prepared, sizes: tuple[int, ...], share: float) -> None:
    data = prepared(*(f"{i}" + "word " * (size // 5) for i, size in enumerate(sizes)))
    total = data.val.n_tokens + data.train.n_tokens
    assert data.val.n_tokens / total == pytest.approx(share, rel=0.02)
    assert bool(data.notes) == (len(sizes) < 7)
    old = 7 if min(sizes) == 7 else min(sizes)  # what whole documents gave
    assert not data.notes or f"would be {old / sum(sizes):.1%} of the data instead of 10.0%" in data.notes[0]


def test_copies_of_the_cut_document_are_in_neither_split() -> None:
    """With other line endings they would be cut at another place."""
    books = ["\n".join(f"book {book} line {i}" for i in range(300)) for book in "ab"]
    windows = books[0].replace("\n", "\r\n")
    sources = source_of([*books, windows, windows])
    parts = split(sources, 0.1)
    train, val = texts_of(parts.train()), texts_of(parts.val())
    cut = next(book for book in books if book.endswith(val[0]))
    assert len(val) == 1
    assert len(train) == (2 if cut is books[0] else 4)
    assert not any(line in "\n".join(train).splitlines() for line in val[0].splitlines()[1:])
    assert cut is books[1] or "occurs 3 times and was used once" in parts.notes[1]


def test_rows_are_not_cut_and_the_note_states_the_fraction() -> None:
    source = dataclasses.replace(source_of(["a" * 100, "b" * 100, "c" * 100]), rows=True)
    parts = split(source, 0.1)
    assert len(texts_of(parts.val())) == 1
    assert parts.notes == ["Validation is 33.3% of the data instead of 10.0%: rows are not cut."]


def test_version_1_of_the_rules_still_works(tmp_path: Path) -> None:
    """It gives the split of older runs, in a cache of the same name as then."""
    for name, text in (("a", "word " * 2000), ("b", "README\n"), ("c", "README\r\n")):
        (tmp_path / name).write_bytes(text.encode())
    corpus = partial(text_corpus, tmp_path / "[abc]")
    before = prepare(corpus(), ByteTrainer(), cache_dir=tmp_path / "cache", rules=1)
    now = prepare(corpus(), ByteTrainer(), cache_dir=tmp_path / "cache")
    assert before.path != now.path
    assert (before.rules, before.val.n_tokens, before.notes) == (1, len("README\nREADME\n") + 2, [])
    assert now.rules == 2
    assert now.val.n_tokens == pytest.approx(1000, rel=0.02)
    key = fingerprint_of(1, corpus().open(ContentHashes(tmp_path / "h")).fingerprint, ByteTrainer().fingerprint())
    assert before.path.name == key[:32]


def test_line_endings_and_byte_order_marks_do_not_make_another_document(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a text\n" for i in range(400))
    dos = text.replace("\n", "\r\n")
    forms = {
        "unix": text, "dos": dos, "mac": text.replace("\n", "\r"), "marked": "\ufeff" + text,
        "marked dos": "\ufeff" + dos, "marked twice": "\ufeff\ufeff" + text, "mixed": text.replace("1\n", "1\r\n"),
    }  # fmt: skip
    for name, form in forms.items():
        (tmp_path / f"{name}.txt").write_bytes(form.encode())
    data = prepare(text_corpus(tmp_path), CharTrainer(), cache_dir=tmp_path / ".cache")
    assert data.notes == ["All 7 documents are the same text; it was used once."]
    assert data.train.n_tokens + data.val.n_tokens == len(text)
    assert "\ufeff" not in data.tokenizer.alphabet
    assert "\r" not in data.tokenizer.alphabet
    for name in forms:
        both = text_corpus(tmp_path / "unix.txt", val_path=str(tmp_path / f"{name}.txt"))
        with pytest.raises(UserError, match="all training documents are also in validation"):
            prepare(both, CharTrainer(), cache_dir=tmp_path / ".cache")
    (tmp_path / "other.txt").write_text("quite another text " * 30)
    inside = text_corpus(tmp_path, val_path=str(tmp_path / "marked dos.txt"))
    data = prepare(inside, CharTrainer(), cache_dir=tmp_path / ".cache")
    assert data.train.n_tokens == 19 * 30
    assert data.notes[0] == "7 training documents are also in validation and were left out of training."


@MANY
@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xe2\x82\xac"]), max_size=30),
    st.integers(3, 9),
)
def test_text_digest_is_that_of_the_text(tmp_path_factory, parts: list[bytes], chunk: int) -> None:
    """Wherever a block of the file ends."""
    file = tmp_path_factory.getbasetemp() / "text"
    file.write_bytes(b"".join(parts))
    before, hashes.CHUNK = hashes.CHUNK, chunk
    try:
        content = hashes._content(str(file))
    finally:
        hashes.CHUNK = before
    text = b"".join(parts)
    while chunk >= len(text) and text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    if chunk < len(b"".join(parts)) and b"".join(parts).startswith(b"\xef\xbb\xbf"):
        return  # marks over the end of a first block, which is a megabyte
    text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert (content.text_digest or content.digest) == hashlib.sha256(text).digest()
    assert content.text_size == len(text)
    assert content.digest == hashlib.sha256(b"".join(parts)).digest()


def test_training_text_that_is_also_in_val_path_is_left_out() -> None:
    parts = split(source_of(["a", "b", "c", "b"], ["b", "x"]), 0.5)
    assert texts_of(parts.train()) == ["a", "c"]
    assert texts_of(parts.val()) == ["b", "x"]
    assert parts.notes == ["2 training documents are also in validation and were left out of training."]
    with pytest.raises(UserError, match=r"all training documents are also in validation"):
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
    """Including the target after the last input: every id tells its document."""
    texts = ["".join(chr(0x4E00 + 40 * d + i) for i in range(40)) for d in range(12)]
    data = prepared(*texts, trainer=CharTrainer(), val_fraction=0.25)
    sampler = Sampler(data.train, seq_len=7, seed=0)
    trained = {c for w in sampler.windows(np.arange(10 * sampler.windows_per_epoch)) for c in w}
    text = data.tokenizer.decode(sorted(trained))
    validated = data.val.read(0, data.val.n_tokens)
    assert set(text) <= set(data.tokenizer.alphabet)
    assert (validated[validated != data.tokenizer.eot_id] == data.tokenizer.unk_id).all()  # none was seen
    predicted = sum(batch.counted for batch in eval_batches(data.val, seq_len=7, batch_size=3))
    assert predicted == data.val.n_tokens - 1


def test_the_tokenizer_learns_from_training_only(prepared) -> None:
    """Validation is full of a word that would be merged first."""
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


def test_an_impossible_fraction_is_refused() -> None:
    with pytest.raises(UserError, match="val_fraction"):
        text_corpus("x", val_fraction=2)
