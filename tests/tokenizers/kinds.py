"""A small tokenizer.json of every common kind, built with the library itself."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers as library
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tinyllm.tokenizers.splitting import RULES, bounded

WORDS = (
    "the cat sat on the mat. It's a truth, universally acknowledged; that 12 men and 345 women don't say so!\n"
    "naïve café ÀÉÎ が ガ 中文，日本語。 한국어 words words  words\n\n\tand more… 3.14 x = y_z (so) [UNK] a b c d e "
) * 3
GPT2, CL100K, LLAMA3, QWEN2, O200K = RULES[0], RULES[5], RULES[3], RULES[6], RULES[7]


def byte_level(rule: str | None, normalizer: Any = None, *, prefix: bool = False) -> library.Tokenizer:
    """Byte-level BPE; ``rule`` None: GPT-2's rule, which is built into the library."""
    backend = library.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=rule is None)
    split = [] if rule is None else [pre_tokenizers.Split(Regex(rule), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, spelling])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS], trainer)
    return backend


def bpe(normalizer: Any, pre_tokenizer: Any, decoder: Any, *, fallback: bool = False) -> library.Tokenizer:
    """BPE over characters with ``<unk>``, and with ``fallback`` a token for each byte."""
    backend = library.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    learner = library.Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    learner.train_from_iterator([WORDS.replace("naïve", "naive")], trainer)
    model = json.loads(learner.to_str())["model"]
    if fallback:
        for byte in range(256):
            model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
    backend.model = models.BPE(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=fallback,
    )
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoder
    return backend


def unigram(normalizer: Any = None, **metaspace: Any) -> library.Tokenizer:
    """Unigram over words, with an unknown token."""
    backend = library.Tokenizer(models.Unigram())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    backend.decoder = decoders.Metaspace(**metaspace)
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([WORDS.replace("が", "")], trainer)
    return backend


def word_piece(**bert: bool) -> library.Tokenizer:
    """WordPiece as in BERT."""
    backend = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**bert)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator([WORDS.replace("中", "")], trainer)
    return backend


def word_level() -> library.Tokenizer:
    """A vocabulary of whole words and punctuation marks."""
    backend = library.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator([WORDS], trainer)
    return backend


def with_added(backend: library.Tokenizer, *tokens: Any) -> library.Tokenizer:
    """``backend`` with added tokens that are matched in text."""
    backend.add_tokens(list(tokens))
    return backend


LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
SPIECE = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
N = normalizers
KINDS: dict[str, Callable[[], library.Tokenizer]] = {
    "gpt2": lambda: byte_level(None),
    "gpt2 split": lambda: byte_level(GPT2),
    "gpt2 with a blank in front": lambda: byte_level(None, prefix=True),
    "cl100k": lambda: byte_level(CL100K),
    "llama3": lambda: byte_level(LLAMA3),
    "qwen2": lambda: byte_level(QWEN2, N.NFC()),
    "o200k nfkc": lambda: byte_level(O200K, N.NFKC()),
    "bounded": lambda: byte_level(bounded(16)),
    "bounded added": lambda: with_added(byte_level(bounded(16)), "the cat", "xx.", "é", "....", "zz zz"),
    "nfd": lambda: byte_level(None, N.NFD()),
    "lowercase": lambda: byte_level(None, N.Sequence([N.NFKC(), N.Lowercase(), N.Strip()])),
    "strip accents": lambda: byte_level(LLAMA3, N.Sequence([N.NFD(), N.StripAccents(), N.Strip()]), prefix=True),
    "digits": lambda: digits(),
    "llama": lambda: bpe(N.Sequence(SPIECE), None, decoders.Sequence(LLAMA_DECODER), fallback=True),
    "metaspace always": lambda: bpe(None, pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "metaspace first": lambda: bpe(
        N.NFKC(),
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoders.Sequence(LLAMA_DECODER),
        fallback=True,
    ),
    "metaspace never": lambda: bpe(
        N.Replace(Regex(" {2,}"), " "),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoders.Metaspace(prepend_scheme="never"),
    ),
    "unigram": lambda: unigram(),
    "unigram nmt": lambda: unigram(N.Sequence([N.Nmt(), N.NFKC(), N.Replace(Regex(" {2,}"), " ")])),
    "unigram first": lambda: unigram(prepend_scheme="first"),
    "word piece": lambda: word_piece(),
    "word piece cased": lambda: word_piece(lowercase=False, handle_chinese_chars=False),
    "word level": lambda: word_level(),
    "added": lambda: with_added(byte_level(None), "good the", "é", "a", AddedToken("t.", rstrip=True)),
    "added strips": lambda: with_added(
        byte_level(QWEN2, N.NFC()),
        AddedToken("sat", lstrip=True, rstrip=True),
        AddedToken("on", single_word=True),
        AddedToken("Ⅷ", normalized=True),
        AddedToken("cat ", normalized=False),
        AddedToken("., ", rstrip=True, normalized=True),
    ),
    "added llama": lambda: with_added(
        bpe(N.Sequence(SPIECE), None, decoders.Sequence(LLAMA_DECODER), fallback=True),
        AddedToken("mat", lstrip=True, normalized=False),
        AddedToken("x", normalized=False),
        AddedToken("the ", rstrip=True, normalized=True),
    ),
    "added unigram": lambda: with_added(
        unigram(N.NFKC()), AddedToken("sat", single_word=True), AddedToken("cat.", rstrip=True, lstrip=True)
    ),
}
UNCUT: dict[str, Callable[[], library.Tokenizer]] = {
    "unknown rule": lambda: byte_level(r"\p{L}+ \p{L}+|[\s\S]"),
    "unigram over all": lambda: unigram(split=False),
    "split behind bytes": lambda: split_behind_bytes(),
}


def digits() -> library.Tokenizer:
    """Single digits, then GPT-2's rule, as in StarCoder."""
    backend = byte_level(None)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def split_behind_bytes() -> library.Tokenizer:
    """A Split after ByteLevel, which sees the letter Ġ for a blank, with a model that merges across it."""
    backend = word_level()
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([spelling, pre_tokenizers.Split(Regex(GPT2), "isolated")])
    return backend


@cache
def built(kind: str) -> str:
    """The tokenizer.json of ``KINDS`` or ``UNCUT``."""
    return (KINDS | UNCUT)[kind]().to_str()
