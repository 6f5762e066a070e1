"""Streaming decoding gives the text that the library decodes from all ids at once."""

import json
import random

import pytest
import tokenizers as library
from tokenizers import Regex, decoders, models

from tests.tokenizers.kinds import KINDS, LLAMA_DECODER, UNCUT, built, with_added
from tests.tokenizers.test_cuts import texts
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer

TOKENS = [
    *("▁", "▁a", "a", "b▁b", " ", "  ", "##s", "##", "x.", ".", "?", "'", "n't", " do not", "▁▁", "</w>", "a</w>"),
    *("<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>", "<0x41>", "Ġ", "ä", "¸", "●", "_", "<pad>", "中", " a "),
]
CHAINS = {
    "none": None,
    "metaspace": decoders.Metaspace(),
    "metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "word piece": decoders.WordPiece(),
    "word piece as it is": decoders.WordPiece(prefix="##", cleanup=False),
    "ends of words": decoders.BPEDecoder(),
    "byte level": decoders.ByteLevel(),
    "byte fallback": decoders.ByteFallback(),
    "llama": decoders.Sequence(LLAMA_DECODER),
    "strip": decoders.Strip("a", 1, 0),
    "expression": decoders.Replace(Regex("[▁ ]+"), "-"),
    "ctc": decoders.CTC(),
    "fused": decoders.Sequence([decoders.Fuse(), decoders.Metaspace()]),
    "several": decoders.Sequence([decoders.ByteFallback(), decoders.WordPiece(), decoders.BPEDecoder()]),
}


def streamed(tokenizer: HuggingFaceTokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.push, ids)) + stream.flush()


@pytest.mark.parametrize("chain", CHAINS)
def test_streamed_decoders_equal_the_library_for_any_ids(chain: str) -> None:
    """Invalid UTF-8, tokens in any order, several texts through one stream."""
    backend = library.Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="a"))
    if CHAINS[chain] is not None:
        backend.decoder = CHAINS[chain]
    tokenizer, numbers = HuggingFaceTokenizer.from_json(backend.to_str()), random.Random(0)
    stream = tokenizer.stream()
    for _ in range(300):
        ids = numbers.choices(range(len(TOKENS)), k=numbers.randrange(9))
        assert "".join(map(stream.push, ids)) + stream.flush() == backend.decode(ids), [TOKENS[i] for i in ids]
        assert tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("kind", [kind for kind in KINDS | UNCUT if "added" not in kind])
def test_stream_equals_decode_and_the_library(kind: str) -> None:
    tokenizer = HuggingFaceTokenizer.from_json(built(kind))
    backend = library.Tokenizer.from_str(built(kind))
    for text in texts(8):
        ids = tokenizer.encode(text).tolist()
        assert streamed(tokenizer, ids) == tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("kind", ["metaspace always", "llama", "unigram", "word piece", "gpt2"])
def test_streaming_takes_linear_time(kind: str, monkeypatch) -> None:
    """The library decodes nothing, and every push returns the text of one token."""
    tokenizer = HuggingFaceTokenizer.from_json(built(kind))
    ids = tokenizer.encode("the cat sat on the mat. " * 400).tolist()
    expected = tokenizer.decode(ids)
    stream = tokenizer.stream()
    monkeypatch.setattr(tokenizer, "_backend", None)
    shown = [stream.push(i) for i in ids]
    assert max(map(len, shown)) < 20
    assert "".join(shown) + stream.flush() == expected


def test_added_token_shared_with_the_model_is_spelled_like_the_model() -> None:
    """é also spells the byte 0xE9, with which 高 begins; and for a lower-casing model, Cat is its token cat."""
    tokenizer = HuggingFaceTokenizer.from_json(built("added"))
    backend = library.Tokenizer.from_str(built("added"))
    for text in ("高", "é", "高é"):
        [encoded] = tokenizer.encode_measured([text])
        assert tokenizer.decode(encoded.ids) == backend.decode(encoded.ids.tolist())
        lengths = tokenizer.token_bytes()[encoded.ids] if encoded.lengths is None else encoded.lengths
        assert lengths.sum() == len(text.encode())
    lower = with_added(library.Tokenizer.from_str(built("word piece")), "Cat")
    tokenizer = HuggingFaceTokenizer.from_json(lower.to_str())
    ids = tokenizer.encode("the cat").tolist()
    assert tokenizer.decode(ids) == lower.decode(ids) == "the cat"


def test_byte_level_token_outside_the_byte_alphabet_stands_for_its_text() -> None:
    state = json.loads(built("gpt2"))
    state["model"]["vocab"] |= {"●": 500, "Ġx y": 501}
    tokenizer = HuggingFaceTokenizer.from_json(json.dumps(state))
    backend = library.Tokenizer.from_str(json.dumps(state))
    for ids in ([500], [501, 500], [tokenizer.encode("é")[0], 500, 501]):
        assert tokenizer.decode(ids) == backend.decode(ids) == streamed(tokenizer, ids)
    assert tokenizer.token_bytes()[501] == len("Ġx y".encode())
