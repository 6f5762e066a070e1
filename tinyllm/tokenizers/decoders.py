"""Streaming decoders: the decoders of a tokenizer.json, fed token by token.

In the library ``tokenizers``, a decoder turns the list of all tokens into another list (``decode_chain`` in
``tokenizers/src/decoders`` and ``pre_tokenizers/metaspace.rs``). Here a stage takes one token at a time and passes on
what no later token can change. The text is the same; the tests compare the two.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex
from tokenizers import decoders as library

from tinyllm.tokenizers.base import TextStream

CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")),
    *((" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""Replacements in every token by ``cleanup`` of the WordPiece decoder, in this order."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: the printable character that stands for each byte (openai/gpt-2, encoder.py)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    unprintable = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(unprintable)}


BYTE_OF = _byte_alphabet()
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}


def spelled_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet; a token with other characters stands for its own text."""
    spelled = [BYTE_OF.get(char) for char in token]
    return token.encode() if None in spelled else bytes(spelled)  # type: ignore[arg-type]


BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Stage:
    """One decoder of a chain; this class changes every token independently.

    Args:
        change: called with a token and whether it is the first of the text; returns the decoded token.
    """

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change = change
        self._first = True

    def push(self, token: str) -> list[str]:
        """Take a token; returns the decoded tokens that are now certain."""
        first, self._first = self._first, False
        return [self._change(token, first)]

    def flush(self) -> list[str]:
        """End the text; returns the tokens held back. The stage can then be used again."""
        self._first = True
        return []


class ByteFallback(Stage):
    """``<0xE4><0xB8><0xAD>`` becomes 中. A run of bytes that is not valid UTF-8 becomes one U+FFFD per byte."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, token: str) -> list[str]:
        byte = BYTE.fullmatch(token)
        if byte is None:
            return [*self.flush(), token]
        self._held.append(int(byte[1], 16))
        return []

    def flush(self) -> list[str]:
        held, self._held = bytes(self._held), bytearray()
        try:
            return [held.decode()] if held else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(held)


class BytesAsText(Stage):
    """Tokens in GPT-2's byte alphabet; a character appears with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: str) -> list[str]:
        return [self._decoder.decode(spelled_bytes(token))]

    def flush(self) -> list[str]:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return [text]


class WordEnds(Stage):
    """``</w>`` becomes a blank, or nothing at the end of the text."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def push(self, token: str) -> list[str]:
        held, self._held = self._held, token
        return [] if held is None else [held.replace(self._suffix, " ")]

    def flush(self) -> list[str]:
        held, self._held = self._held, None
        return [] if held is None else [held.replace(self._suffix, "")]


class StripFused(Stage):
    """Strips ``content`` from the whole text, up to ``start`` times at the beginning and ``stop`` times at the end."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._left, self._held = start, 0

    def push(self, token: str) -> list[str]:
        stripped = 0
        while self._left and stripped < len(token) and token[stripped] == self._content:
            stripped += 1
            self._left -= 1
        if stripped < len(token):
            self._left = 0
        text = self._content * self._held + token[stripped:]
        self._held = min(self._stop, len(text) - len(text.rstrip(self._content)))
        return [text[: len(text) - self._held]]

    def flush(self) -> list[str]:
        self._left, self._held = self._start, 0
        return []


class DeferredDecoder(Stage):
    """A decoder without a streaming equivalent: holds all tokens back, and lets the library decode them at the end."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._held: list[str] = []

    def push(self, token: str) -> list[str]:
        self._held.append(token)
        return []

    def flush(self) -> list[str]:
        held, self._held = self._held, []
        return [self._decode(held)] if held else []


class ChainStream(TextStream):
    """Decodes ids through a chain of stages.

    Args:
        spelling: the token of each id; ids without one, such as special tokens, are skipped.
        stages: the decoders in order.
    """

    def __init__(self, spelling: Mapping[int, str], stages: Sequence[Stage]) -> None:
        self._spelling = spelling
        self._stages = stages

    def push(self, token: int) -> str:
        text = self._spelling.get(int(token))
        return "" if text is None else self._through([text], 0)

    def flush(self) -> str:
        return "".join(self._through(stage.flush(), i + 1) for i, stage in enumerate(self._stages))

    def text_of(self, tokens: list[str]) -> str:
        """The text of tokens given by their spelling."""
        return self._through(tokens, 0) + self.flush()

    def _through(self, tokens: list[str], first: int) -> str:
        for stage in self._stages[first:]:
            tokens = [new for token in tokens for new in stage.push(token)]
        return "".join(tokens)


def stages(parts: Iterable[Mapping[str, Any]] | None, *, decode_all: Callable[[list[str]], str]) -> list[Stage]:
    """The streaming stages of a tokenizer.json's decoder.

    Args:
        parts: the decoders in order; None: there is no decoder, and tokens are joined by blanks.
        decode_all: decodes the list of all tokens, for decoders without a streaming equivalent.
    """
    if parts is None:
        return [Stage(lambda token, first: token if first else f" {token}")]
    chain: list[Stage] = []
    fused = False
    for part in parts:
        kind = part["type"]
        if kind == "Fuse":
            fused = True
            continue
        stage = _stage(part, fused=fused)
        if stage is None:
            return [DeferredDecoder(decode_all)]
        chain.append(stage)
        fused = fused or kind == "ByteLevel"
    return chain


def _stage(part: Mapping[str, Any], *, fused: bool) -> Stage | None:
    """The stage of one decoder; None: it has no streaming equivalent."""
    kind = part["type"]
    if kind == "Strip":
        if fused:
            return StripFused(part["content"], part["start"], part["stop"])
        strip = StripFused(part["content"], part["start"], part["stop"])
        return Stage(lambda token, _: "".join(strip.push(token) + strip.flush()))
    if fused:
        return None  # other decoders look at whole tokens, and after a Fuse there is only one
    if kind == "ByteLevel":
        return BytesAsText()
    if kind == "ByteFallback":
        return ByteFallback()
    if kind == "BPEDecoder":
        return WordEnds(part["suffix"])
    if kind == "Metaspace":
        mark, drops = part["replacement"], part["prepend_scheme"] != "never"
        return Stage(lambda token, first: token.replace(mark, "" if first and drops else " "))
    if kind == "WordPiece":
        prefix, cleanup = part["prefix"], part["cleanup"]
        return Stage(lambda token, first: _joined(token, first, prefix, cleanup))
    if kind == "Replace" and "String" in part["pattern"]:
        old, new = part["pattern"]["String"], part["content"]
        return Stage(lambda token, _: token.replace(old, new) if old else token)
    if kind == "Replace":
        replace = library.Replace(Regex(part["pattern"]["Regex"]), part["content"])
        return Stage(lambda token, _: replace.decode([token]))
    return None


def _joined(token: str, first: bool, prefix: str, cleanup: bool) -> str:
    if not first:
        token = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
    for old, new in CLEANED if cleanup else ():
        token = token.replace(old, new)
    return token
