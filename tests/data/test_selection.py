"""Which documents are used, and how their text changes."""

import tracemalloc
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import text_corpus
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.document import Document
from tinyllm.data.prepare import prepare
from tinyllm.data.selection import SeenKeys, Selection, selection_of, text_documents
from tinyllm.data.text import TextCorpus
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer


def made(texts: Sequence[str]) -> Iterator[Document]:
    return text_documents(text.encode() for text in texts)


def selected(selection: Selection, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts that are used, and the notes; two passes agree."""
    notes: list[str] = []
    documents = selection.of(lambda: made(texts), count=len, notes=notes)
    first, again = (["".join(document.chunks()) for document in documents()] for _ in range(2))
    assert first == again
    for document, text in zip(documents(), first, strict=True):
        assert document.size == len(text.encode())
    return first, notes


def test_copies_are_left_out_and_counted() -> None:
    texts = ["a\nb", "c", "a\r\nb", "d", "c", "c"]
    assert selected(Selection(dedup=True), texts) == (
        ["a\nb", "c", "d"],
        ["3 exact copies of earlier documents (6 bytes) were left out."],
    )
    assert selected(Selection(), texts) == (texts, [])


def test_texts_that_become_equal_are_copies() -> None:
    texts = ["é", "e\u0301", "Tom 's", "Tom's"]
    assert selected(Selection(dedup=True, normalize="nfc", clean="wikitext"), texts)[0] == ["é", "Tom's"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_documents": 2}, ["one", "three"]),
        ({"max_documents": 9}, ["one", "three", "seven"]),
        ({"max_tokens": 3}, ["one"]),
        ({"max_tokens": 5}, ["one", "th"]),
        ({"max_tokens": 8}, ["one", "three"]),
        ({"max_tokens": 99}, ["one", "three", "seven"]),
        ({"max_tokens": 9, "max_documents": 2}, ["one", "three"]),
        ({"max_tokens": 4, "max_documents": 2}, ["one", "t"]),
    ],
)
def test_the_first_so_many(limits: dict[str, int], expected: list[str]) -> None:
    assert selected(Selection(**limits), ["one", "three", "seven"])[0] == expected  # type: ignore[arg-type]


def test_limits_count_what_remains_without_copies() -> None:
    texts = ["aa", "aa", "bb", "aa", "cc"]
    chosen, [note] = selected(Selection(dedup=True, max_documents=2), texts)
    assert chosen == ["aa", "bb"] and note.startswith("1 exact copy")


def test_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("häh " * 500)
    for trainer, characters in ((CharTrainer(), 100), (ByteTrainer(), 80)):
        data = prepare(text_corpus(tmp_path, max_tokens=100), trainer, cache_dir=tmp_path / "cache")
        text = data.tokenizer.decode([*data.train.ids, *data.val.ids])
        assert text.replace("\n", "") == ("häh " * 500)[:characters]


@given(st.text(alphabet="aeäe\u0301\u0327\u1100\u1161\u11a8漢が\u3099\u09c7\u09be \n", max_size=40), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_normalizing_in_chunks_is_normalizing_the_whole(text: str, size: int) -> None:
    def chunks() -> Iterator[str]:
        return iter([text[i : i + size] for i in range(0, len(text), size)])

    document = Document(b"d" * 32, len(text.encode()), chunks, b"t" * 32)
    [changed] = Selection(normalize="nfc").text_of(lambda: iter([document]))()
    assert "".join(changed.chunks()) == unicodedata.normalize("NFC", text)


def test_a_set_of_keys_is_exact_and_small() -> None:
    keys = [(i * 0x9E3779B97F4A7C15) % 2**64 for i in range(8_000)]
    seen = SeenKeys()
    tracemalloc.start()
    assert all(seen.add(key) for key in keys)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not any(seen.add(key) for key in keys)
    assert size < 20 * len(keys) + 500_000


def test_defaults_leave_the_fingerprint_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")

    def fingerprint(**changes: object) -> str:
        return text_corpus(tmp_path / "a.txt", **changes).open(ContentHashes(tmp_path / "hashes")).fingerprint

    defaults = {"clean": False, "normalize": "none", "dedup": False, "max_documents": None, "max_tokens": None}
    assert fingerprint() == fingerprint(**defaults) != fingerprint(max_tokens=5)


def test_wikitext_in_a_file_is_articles(tmp_path: Path) -> None:
    file = tmp_path / "wiki.train.tokens"
    file.write_text(" \n = One = \n \n a @-@ b . \n = Two = \n ( c ) \n")
    corpus = text_corpus(file, clean="wikitext")
    corpus.check()
    documents = corpus.open(ContentHashes(tmp_path / "hashes")).documents()
    assert ["".join(document.chunks()) for document in documents] == ["\nOne\n\na-b.\n", "Two\n(c)\n"]
    file.write_text("no heading here " * 99)
    with pytest.raises(UserError, match=r"no article begins .*= Title ="):
        text_corpus(file, clean="wikitext").check()


@pytest.mark.parametrize("change", [{"clean": "x"}, {"normalize": "nfd"}, {"dedup": True}, {"max_tokens": 0}])
def test_values_that_are_not_allowed(change: dict[str, object]) -> None:
    good: dict[str, object] = {
        **{"clean": False, "normalize": "none", "dedup": False},
        **{"max_documents": None, "max_tokens": None},
    }
    [key] = change
    with pytest.raises(UserError, match=f"dataset.{key}="):
        selection_of(**good | change)  # type: ignore[arg-type]


def test_the_keys_are_those_of_the_base_class() -> None:
    corpus = TextCorpus(path="x", val_path=None, val_fraction=0.1, errors="strict", dedup="exact", max_tokens=9)
    assert corpus.selection == Selection(dedup=True, max_tokens=9)
