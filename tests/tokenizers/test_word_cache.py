"""Encoding by word gives what the library gives, for every kind of byte-level tokenizer."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.kinds import built, byte_level
from tests.tokenizers.test_round_trip import TEXT
from tinyllm.tokenizers import Tokenizer, huggingface, word_cache
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.splitting import RULES, bounded

CACHED = {"built in": None, "bounded": bounded(16)} | {f"rule {i}": RULES[i] for i in (0, 1, 2, 3, 5, 6, 7)}
WORDS = st.lists(
    st.one_of(TEXT, st.sampled_from(["😀", "𝐀", "𝟗", "𠀀", "'S", "'ſ", "'LL", "x'Re", "ﬅ", "\x1c", "\u3000"]))
)
HARD = "It's 1,234.5 — déjà vu; naïve café 中文，日本語。 한국어\r\n\t  x=y_z(so)\n\n 'LL 'ſ I'M  \u3000😀 end"


@pytest.fixture(autouse=True)
def always(monkeypatch) -> None:
    """Use the cache for short texts too."""
    monkeypatch.setattr(huggingface, "WORTH_A_CACHE", 0)


@cache
def tokenizer_of(kind: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(byte_level(CACHED[kind]))


def by_library(tokenizer: HuggingFaceTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()  # does not use the cache


EVERY_DAY = ("bounded",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in EVERY_DAY else pytest.mark.slow) for kind in CACHED]
)
def test_every_character_in_every_position(kind: str) -> None:
    """All characters that UTF-16 writes as one unit, next to letters, digits, blanks, apostrophes and marks."""
    tokenizer = tokenizer_of(kind)
    assert tokenizer._word_cache is not None
    for first in range(0, 0x10000, 0x1000):
        chars = [chr(code) for code in range(first, first + 0x1000) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{c}1{c}'{c} {c}." for c in chars)
        [ids] = tokenizer.encode_batch([text])
        assert ids.tolist() == by_library(tokenizer, text), hex(first)


@settings(max_examples=40, deadline=None)
@given(WORDS.map("".join), st.sampled_from(sorted(CACHED)))
def test_any_text(text: str, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    [ids, again] = tokenizer.encode_batch([text, text])
    assert ids.tolist() == again.tolist() == by_library(tokenizer, text)


def test_text_that_the_cache_does_not_support(monkeypatch) -> None:
    """Letters beyond the basic plane are classified by the library, and the other texts of the batch are not."""
    tokenizer = tokenizer_of("built in")
    by_hand: list[str] = []
    library = tokenizer._by_library
    monkeypatch.setattr(tokenizer, "_by_library", lambda texts: by_hand.extend(texts) or library(texts))
    texts = [HARD, "a 𝐀 b", "", HARD * 2, "𠀀"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [by_library(tokenizer, text) for text in texts]
    assert by_hand == ["a 𝐀 b", "𠀀"]


def test_special_tokens_are_matched(bpe: Tokenizer) -> None:
    tokenizer = bpe.matching(True)
    text = "one<|endoftext|>two"
    [plain, matched] = tokenizer.encode_batch(["one", text])
    assert tokenizer.eot_id in matched
    assert matched.tolist() == tokenizer.encode(text).tolist()
    assert plain.tolist() == bpe.encode("one").tolist()
    assert bpe.eot_id not in bpe.encode_batch([text])[0]


def test_the_cache_is_bounded(monkeypatch) -> None:
    """What is forgotten is encoded again."""
    tokenizer = HuggingFaceTokenizer.from_json(built("gpt2"))
    monkeypatch.setattr(word_cache, "MOST_WORDS", 30)
    sizes = []
    for i in range(20):
        text = f"{HARD} word{i} {'x' * i} {i * 7919}"
        assert tokenizer.encode_batch([text])[0].tolist() == by_library(tokenizer, text)
        sizes.append(len(tokenizer._word_cache._words))
    assert max(sizes) <= 30 + len(HARD)
    assert sizes != sorted(sizes)


def test_an_interrupted_word_is_forgotten(monkeypatch) -> None:
    tokenizer = HuggingFaceTokenizer.from_json(built("gpt2"))
    words = tokenizer._word_cache._words
    tokenizer.encode_batch(["one two"])
    monkeypatch.setattr(words, "_model", None)
    words._ids.append(7)  # as if Ctrl-C had come between a word's ids and its end
    with pytest.raises(AttributeError):
        tokenizer.encode_batch(["three"])
    monkeypatch.undo()
    assert tokenizer.encode_batch(["two three"])[0].tolist() == by_library(tokenizer, "two three")


def test_other_tokenizers_have_no_cache() -> None:
    """Their ids do not follow from words of bytes, or the rule means something else to Python."""
    assert HuggingFaceTokenizer(byte_level(RULES[4]))._word_cache is None
    for kind in ("unigram", "word piece", "llama", "qwen2", "gpt2 with a blank in front", "digits"):
        assert HuggingFaceTokenizer.from_json(built(kind))._word_cache is None


def test_unlimited_words() -> None:
    trainer = BPETrainer(vocab_size=300, min_frequency=1, special_tokens=["<|endoftext|>"], max_word=None)
    tokenizer = trainer.train([HARD])
    text = HARD + "ab" * 5000
    assert np.array_equal(tokenizer.encode_batch([text])[0], tokenizer.encode(text))
