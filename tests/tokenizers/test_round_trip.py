"""Properties of every tokenizer for any text: round trips, pieces, streams, files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.ids import IdsTokenizer

MANY = settings(max_examples=40, deadline=None)
# The categories alone would hardly ever give the marks, blanks and digits that splitting rules turn on.
TEXT = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from([" ", "  ", "\n", "\r\n", "'s", "don't", "a b", "1234", "中文。", "é", "<|endoftext|>"]),
    ),
    max_size=20,
).map("".join)


def check(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, strict=True)
    assert ids.dtype == np.int64
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, text])[1].tolist() == ids.tolist()
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert tokenizer.eot_id not in ids
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == text
    again = type(tokenizer).from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.encode(text).tolist() == ids.tolist()
    assert again.fingerprint() == tokenizer.fingerprint()


@MANY
@given(TEXT)
def test_char(text: str) -> None:
    check(CharTrainer().train([text, "other documents"]), text)


@MANY
@given(TEXT)
def test_byte(text: str) -> None:
    check(ByteTokenizer(), text)


@MANY
@given(text=TEXT)
def test_bpe(bpe: Tokenizer, text: str) -> None:
    check(bpe, text)


@MANY
@given(text=TEXT, data=st.data())
def test_pieces_give_the_ids_of_the_whole(bpe: Tokenizer, text: str, data: st.DataObject) -> None:
    """For any chunks and any piece size."""
    for tokenizer in (bpe, ByteTokenizer(), CharTrainer().train([text])):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        size = data.draw(st.integers(1, 12))
        pieces = list(tokenizer.pieces(iter(chunks), size))
        assert "".join(pieces) == text
        joined = [i for piece in pieces for i in tokenizer.encode(piece).tolist()]
        assert joined == tokenizer.encode(text).tolist()


def test_long_text_is_cut(bpe: Tokenizer) -> None:
    text = "Words and numbers 12, and more of them. " * 500
    pieces = list(bpe.pieces([text], 1000))
    assert len(pieces) >= 20
    assert max(map(len, pieces)) <= 1000


def test_text_without_a_cut_stays_one_piece() -> None:
    free = BPETrainer(vocab_size=300, min_frequency=2, special_tokens=[], max_word=None).train(["x y"])
    text = "x" * 5000
    assert list(free.pieces([text[i : i + 7] for i in range(0, 5000, 7)], 100)) == [text]


@MANY
@given(st.lists(st.integers(0, 256), max_size=30))
def test_byte_stream_equals_decode_for_any_ids(ids: list[int]) -> None:
    """Invalid UTF-8 included: a model need not generate valid text."""
    tokenizer = ByteTokenizer()
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


@MANY
@given(st.lists(st.integers(0, 399), max_size=30))
def test_bpe_stream_equals_decode_for_any_ids(bpe: Tokenizer, ids: list[int]) -> None:
    ids = [i for i in ids if i < bpe.vocab_size]
    stream = bpe.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == bpe.decode(ids)


def test_character_appears_with_its_last_byte() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(i) for i in "a€b".encode()] == ["a", "", "", "€", "b"]


@pytest.mark.parametrize("tokenizer", [CharTrainer().train(["abc", "é"]), ByteTokenizer(), IdsTokenizer(vocab_size=7)])
def test_file_round_trip(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert (again.vocab_size, again.eot_id, again.unk_id) == (
        tokenizer.vocab_size,
        tokenizer.eot_id,
        tokenizer.unk_id,
    )


def test_bpe_file_round_trip(bpe: Tokenizer, tmp_path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert again.fingerprint() == bpe.fingerprint()
    assert again.encode("don't <|endoftext|>").tolist() == bpe.encode("don't <|endoftext|>").tolist()
    assert again.eot_id == bpe.eot_id == 0
