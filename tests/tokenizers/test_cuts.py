"""Documents encoded in pieces get the ids that the library gives the whole text, for every kind of tokenizer."""

import json
import random
from functools import cache

import pytest
import tokenizers as library

from tests.tokenizers.kinds import KINDS, UNCUT, WORDS, built
from tinyllm.data.corpus import Document
from tinyllm.data.encode import EncodingStats, encode_documents
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

BITS = [
    *("the", " ", "  ", "\n", "\r\n", "\t", "cat", "sat", "on", "mat", ".", " . ", ",", "!", "?", "'s", "don't", "12"),
    *(
        "345",
        "é",
        "e\u0301",
        "が",
        "か\u3099",
        "中文",
        "日本語",
        "。",
        "，",
        "한국어",
        "\u1112\u1161\u11ab",
        "ﬁ",
        "Ⅷ",
        "x",
    ),
    *(
        "y_z",
        "🦓",
        "\u0301",
        " \u0308",
        "good the",
        "t.",
        "a",
        "cat ",
        "., ",
        "\x00",
        "▁",
        "İ",
        "ÀÉ",
        "\u200b",
        "\ufeff",
    ),
    *("\u0600", "A", "B.", " a", "_", "-", "<unk>", "\u3000", "\u00a0", "s.", "x ", "x" * 40, " " * 30, "." * 20),
    *("中" * 50, "xx.", "zz zz", "z", "the cat"),
]


def texts(n: int, seed: int = 5) -> list[str]:
    """Random texts rich in characters that splitting rules, normalizers and added tokens react to."""
    numbers = random.Random(seed)
    return ["".join(numbers.choices(BITS, k=numbers.randrange(1, 30))) for _ in range(n)]


def whole(kind: str, text: str) -> list[int]:
    """The library's ids of the whole text, with special tokens as text."""
    backend = library.Tokenizer.from_str(built(kind))
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


@cache
def made(kind: str) -> HuggingFaceTokenizer:
    """Cached, because finding a tokenizer's cuts takes longer than encoding the texts."""
    return HuggingFaceTokenizer.from_json(built(kind))


def pieces_are_the_whole(kind: str, n: int) -> None:
    """For any chunks and piece sizes; and every byte of the text is counted once."""
    tokenizer, numbers = made(kind), random.Random(n)
    usual = tokenizer.token_bytes()
    for text in texts(n):
        expected = whole(kind, text)
        middle = numbers.randrange(len(text) + 1)
        pieces = list(tokenizer.pieces(iter([text[:middle], text[middle:]]), numbers.randrange(1, 12)))
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in tokenizer.encode(piece).tolist()] == expected, (text, pieces)
        encoded = tokenizer.encode_measured(pieces)
        assert [i for one in encoded for i in one.ids.tolist()] == expected
        assert [ids.tolist() for ids in tokenizer.encode_batch(pieces)] == [one.ids.tolist() for one in encoded]
        counted = [usual[one.ids] if one.lengths is None else one.lengths for one in encoded]
        silent = sum(len(piece.encode()) for piece, one in zip(pieces, encoded, strict=True) if not len(one.ids))
        assert sum(int(lengths.sum()) for lengths in counted) + silent == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_ids_of_the_whole(kind: str) -> None:
    pieces_are_the_whole(kind, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_many_texts_give_the_ids_of_the_whole(kind: str) -> None:
    pieces_are_the_whole(kind, 300)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_is_cut_into_pieces(kind: str) -> None:
    tokenizer = made(kind)
    pieces = list(tokenizer.pieces([WORDS * 20], 1000))
    assert max(map(len, pieces)) <= 1000


@pytest.mark.parametrize("kind", UNCUT)
def test_document_stays_whole_without_a_known_safe_cut(kind: str) -> None:
    tokenizer = made(kind)
    assert not tokenizer.cuts_documents
    assert list(tokenizer.pieces([WORDS, WORDS], 100)) == [WORDS + WORDS]


def documents(*contents: str) -> list[Document]:
    return [
        Document(digest=b"", text_digest=b"", size=len(text), chunks=lambda text=text: iter([text]))
        for text in contents
    ]  # type: ignore[misc]


def test_bytes_of_dropped_text_are_counted() -> None:
    """Blanks between and after words, in pieces and in whole documents."""
    tokenizer = made("word piece")
    contents = ("   ", "the cat\n\n   ", "\t", "sat \n")
    for batch in (1, 4, 1000):
        parts = list(encode_documents(tokenizer, documents(*contents), piece=3, batch=batch))
        usual = tokenizer.token_bytes()
        total = sum(int((usual[ids] if lengths is None else lengths).sum()) for ids, lengths, _ in parts)
        assert total == len("".join(contents)), batch


def test_unknown_text_is_counted_in_characters_and_bytes() -> None:
    """An <unk> stands for a word in WordPiece, and for a run of characters in Unigram."""
    for kind in ("word piece", "unigram", "word level"):
        tokenizer = made(kind)
        assert tokenizer.unk_id is not None
        for text in ("the 🦓🦓 cat 🦓", "🦓🦓"):
            stats = EncodingStats()
            list(encode_documents(tokenizer, documents(text), stats=stats))
            assert (stats.characters, stats.bytes) == (text.count("🦓"), 4 * text.count("🦓")), (kind, text)


@pytest.mark.parametrize("kind", ["unigram", "word piece", "word level", "metaspace always"])
def test_strict_encoding_refuses_unknown_text(kind: str) -> None:
    tokenizer = made(kind)
    tokenizer.encode("the cat", strict=True)
    with pytest.raises(UserError, match="no token for '🦓"):
        tokenizer.encode("the cat 🦓", strict=True)


def test_characters_dropped_without_unk_are_counted_and_refused_in_prompts() -> None:
    """BPE without an unknown token drops unknown characters."""
    state = json.loads(built("metaspace always"))
    state["model"]["unk_token"] = None
    tokenizer, stats = HuggingFaceTokenizer.from_json(json.dumps(state)), EncodingStats()
    parts = list(encode_documents(tokenizer, documents("the 🦓🦓 cat 🦓"), stats=stats))
    assert (stats.characters, stats.bytes) == (3, 12)
    usual = tokenizer.token_bytes()
    assert sum(int((usual[ids] if n is None else n).sum()) for ids, n, _ in parts) == len("the 🦓🦓 cat 🦓".encode())
    with pytest.raises(UserError, match="'🦓'"):
        tokenizer.encode("a 🦓", strict=True)


def test_text_without_blanks_is_cut_between_bounded_words(bpe: Tokenizer) -> None:
    """For all kinds of characters, with the ids of the whole text."""
    trainer = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"])
    tokenizer = trainer.train([WORDS])
    for run in ("acgt", "7", "中", "=", " ", "\n", "é"):
        text = run * (12_000 // len(run))
        pieces = list(tokenizer.pieces([text[i : i + 999] for i in range(0, len(text), 999)], 1000))
        assert max(map(len, pieces)) <= 1000
        joined = [i for piece in pieces for i in tokenizer.encode(piece).tolist()]
        assert joined == tokenizer.encode(text).tolist() == tokenizer.encode_batch([text])[0].tolist()
        assert tokenizer.decode(joined) == text


def test_max_word_changes_no_id_of_ordinary_text() -> None:
    """If no word reaches the limit, it changes neither the merges nor an id."""
    settings = {"vocab_size": 400, "min_frequency": 1, "special_tokens": ["<|endoftext|>"]}
    limited, free = (BPETrainer(**settings, max_word=limit).train([WORDS]) for limit in (256, None))  # type: ignore[arg-type]
    assert limited.to_dict()["model"] == free.to_dict()["model"]
    assert free.to_dict()["pre_tokenizer"]["type"] == "ByteLevel"  # as earlier versions wrote it
    for text in texts(50):
        assert limited.encode(text).tolist() == free.encode(text).tolist()


def test_training_on_text_without_blanks_counts_bounded_words() -> None:
    """For any chunks; every word of the run is counted, and none is longer than the limit."""
    run = "".join(random.Random(1).choices("acgt", k=12_000))
    trainer = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=[], max_word=64)
    expected = trainer.train([run])
    assert trainer.train([run[i : i + 64] for i in range(0, len(run), 64)]).fingerprint() == expected.fingerprint()
    pieces = list(trainer.pieces([run * 90]))
    assert len(pieces) > 1
    assert all(len(piece) % 64 == 0 for piece in pieces[:-1])
