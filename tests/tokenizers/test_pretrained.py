"""Existing tokenizers, compared with the libraries that made them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import example, given, settings

from tests.tokenizers.conftest import ENGLISH
from tests.tokenizers.test_round_trip import TEXT
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, load
from tinyllm.tokenizers.decoders import BYTE_OF
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.pretrained import PretrainedTrainer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)


def word_piece(path: Path) -> Path:
    """WordPiece as in BERT, with lower-casing and [UNK]: the text cannot be recovered from the ids."""
    words = ["[UNK]", "[SEP]", "it", "##s", "a", "truth", "man", "##ly", "universal", ",", "of"]
    backend = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = library.normalizers.BertNormalizer()
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.WordPiece()
    backend.add_special_tokens(["[SEP]", "[UNK]"])
    backend.enable_truncation(4)
    backend.save(str(path))
    return path


def test_file_and_directory_give_the_same_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    by_file = PretrainedTrainer(path=str(tmp_path / "tokenizer.json"))
    by_folder = PretrainedTrainer(path=str(tmp_path))
    by_file.check()
    assert by_file.train([]).fingerprint() == by_folder.train([]).fingerprint() == bpe.fingerprint()
    assert by_file.fingerprint() == by_folder.fingerprint()


def test_editing_the_file_changes_the_fingerprint(bpe: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    bpe.save(file)
    before = PretrainedTrainer(path=str(file)).fingerprint()
    file.write_text(file.read_text() + " ")
    assert PretrainedTrainer(path=str(file)).fingerprint() != before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '"x"', '{"kind": "other"}', '{"kind": "char"}', '{"model": 1}']
)
def test_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match="damaged or not a tokenizer") as caught:
        load(file)
    assert str(file) in str(caught.value)
    with pytest.raises(UserError, match="damaged or not a tokenizer"):
        PretrainedTrainer(path=str(file)).check()


def test_truncated_file_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    bpe.save(file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match="damaged"):
        load(file)


def test_missing_file_and_empty_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such tokenizer"):
        PretrainedTrainer(path=str(tmp_path / "nothing.json")).check()
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        PretrainedTrainer(path=str(tmp_path)).check()


def test_ids_equal_those_of_the_library(tmp_path: Path) -> None:
    file = word_piece(tmp_path / "tokenizer.json")
    backend = library.Tokenizer.from_file(str(file))
    backend.no_truncation()
    tokenizer = load(file)
    text = "Its universally a TRUTH, of man " * 5
    assert tokenizer.encode(text).tolist() == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.eot_id == 1


def test_bytes_are_counted_from_offsets_if_ids_do_not_give_them(tmp_path: Path) -> None:
    """All bytes of the text are counted, including dropped blanks, unknown words and lower-cased letters."""
    tokenizer = load(word_piece(tmp_path / "tokenizer.json"))
    text = "  Its   a ÜNKNOWN  truth, 中 "
    [(ids, lengths, _)] = tokenizer.encode_measured([text])
    assert lengths is not None and len(lengths) == len(ids)
    assert int(lengths.sum()) == len(text.encode())
    assert tokenizer.unk_id in ids
    assert lengths[ids.tolist().index(tokenizer.unk_id)] == len(" ÜNKNOWN".encode())


def test_strict_encoding_refuses_an_unknown_word(tmp_path: Path) -> None:
    tokenizer = load(word_piece(tmp_path / "tokenizer.json"))
    tokenizer.encode("it xyz")
    with pytest.raises(UserError, match="'xyz'"):
        tokenizer.encode("it xyz", strict=True)


def test_stream_equals_decode_for_word_piece(tmp_path: Path) -> None:
    tokenizer = load(word_piece(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("its a truth universally, of man")
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


def tiktoken_like(bpe: Tokenizer, rule: str):
    """A tiktoken encoding with the vocabulary of the test's BPE."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks: dict[bytes, int] = {}
    vocabulary = bpe.to_dict()["model"]["vocab"]
    for token, _ in sorted(vocabulary.items(), key=lambda item: item[1]):
        if all(c in BYTE_OF for c in token) and not token.startswith("<|"):
            ranks[bytes(BYTE_OF[c] for c in token)] = len(ranks)
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding("test", pat_str=rule, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module", params=[LLAMA_3, CL100K])
def with_its_encoding(request: pytest.FixtureRequest, bpe: Tokenizer) -> tuple[HuggingFaceTokenizer, Any]:
    from tinyllm.tokenizers.tiktoken import converted

    encoding = tiktoken_like(bpe, request.param)
    return HuggingFaceTokenizer.from_json(converted(encoding)), encoding


@settings(max_examples=40, deadline=None)
@given(text=TEXT)
@example(text="1234567 \n\n 12345")
def test_converted_tiktoken_encoding_gives_the_same_ids(
    with_its_encoding: tuple[HuggingFaceTokenizer, Any], text: str
) -> None:
    tokenizer, encoding = with_its_encoding
    assert tokenizer.encode(text).tolist() == encoding.encode_ordinary(text)
    assert tokenizer.eot_id == encoding.eot_token
    assert tokenizer.decode(tokenizer.encode(text)) == text
    pieces = list(tokenizer.pieces([text], 3))
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == encoding.encode_ordinary(text)


def test_tiktoken_rules_allow_cuts(bpe: Tokenizer) -> None:
    from tinyllm.tokenizers.tiktoken import converted

    text = ENGLISH * 100
    tokenizer = HuggingFaceTokenizer.from_json(converted(tiktoken_like(bpe, LLAMA_3)))
    assert len(list(tokenizer.pieces([text], 1000))) >= len(text) // 1000
    strange = HuggingFaceTokenizer.from_json(converted(tiktoken_like(bpe, r"\p{L}+ \p{L}+|.")))
    assert len(list(strange.pieces([text], 1000))) == 1


def test_added_tokens_that_are_not_special_are_matched_in_text(bpe: Tokenizer) -> None:
    """They may contain a blank, where they are not cut."""
    backend = library.Tokenizer.from_str(json.dumps(bpe.to_dict()))
    backend.add_tokens(["good fortune", "é!"])
    tokenizer = HuggingFaceTokenizer(backend)
    text = ENGLISH + "é!"
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size - 1 in ids
    assert tokenizer.vocab_size - 2 in ids
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert [i for piece in tokenizer.pieces([text], 1) for i in tokenizer.encode(piece)] == ids.tolist()


def test_tiktoken_encoding_without_its_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match="not on this machine") as caught:
        PretrainedTrainer(path="gpt2").check()
    assert "\n" not in str(caught.value)


def test_transformers_loads_a_saved_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    backend = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode(ENGLISH).ids == bpe.encode(ENGLISH).tolist()
