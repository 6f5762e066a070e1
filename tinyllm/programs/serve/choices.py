"""The choices of an answer: text and log-probabilities, whole or as they grow."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tinyllm.inference.batching import Finish, Piece, TokenLogprob

LEAST = -9999.0
"""Stands for −∞, which JSON cannot express; OpenAI's API uses it too."""


class Growth(NamedTuple):
    """What a choice has gained since the last time."""

    text: str
    tokens: list[tuple[int, TokenLogprob]]
    """Its tokens with the offsets of their texts, if log-probabilities were asked for."""
    finish: Finish | None
    ids: list[int]
    """Its new tokens."""


class Choice:
    """One choice, fed with pieces."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.finish: Finish | None = None
        self._text = ""
        self._length = 0
        self._tokens: list[tuple[int, TokenLogprob]] = []
        self._ids: list[int] = []

    def push(self, piece: Piece) -> None:
        """Take a piece."""
        self.n_tokens += piece.token is not None
        self.finish = piece.finish
        self._text += piece.text
        if isinstance(piece.token, TokenLogprob):
            self._tokens.append((piece.offset, piece.token))
            self._ids.append(piece.token.token)
        elif piece.token is not None:
            self._ids.append(piece.token)

    def take(self) -> Growth:
        """What is new. Tokens come with their text: those of a stop string, which is left out, never come."""
        text, self._text = self._text, ""
        self._length += len(text)
        certain = [entry for entry in self._tokens if entry[0] < self._length]
        self._tokens = self._tokens[len(certain) :]
        ids, self._ids = self._ids, []
        return Growth(text, certain, self.finish, ids)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The UTF-8 bytes of a token; a special token has those of its spelling."""
    spelled = next((text for text, special in tokenizer.special.items() if special == token), None)
    return tokenizer.bytes_of(token) if spelled is None else spelled.encode("utf-8", "surrogatepass")


def token_text(content: bytes) -> str:
    """The bytes of a token as text; part of a character is written as ``bytes:\\xe2\\x82``, as OpenAI's API does."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def completion_logprobs(
    tokenizer: Any,
    prompt: Sequence[tuple[int, int, TokenLogprob | None]],
    tokens: Iterable[tuple[int, TokenLogprob]],
    *,
    offset: int,
) -> dict[str, Any]:
    """Log-probabilities in the format of completions.

    Args:
        prompt: of each token of an echoed prompt the offset, the id and the log-probability; the first has none.
        tokens: of the new text.
        offset: where the new text begins.
    """
    entries: list[tuple[int, int, TokenLogprob | None]] = [*prompt]
    entries += [(offset + place, entry.token, entry) for place, entry in tokens]

    def spelled(token: int) -> str:
        return token_text(token_bytes(tokenizer, token))

    def alternatives(entry: TokenLogprob | None) -> dict[str, float] | None:
        if entry is None:
            return None
        return {spelled(token): _finite(value) for token, value in [*entry.top, (entry.token, entry.logprob)]}

    return {
        "tokens": [spelled(token) for _, token, _ in entries],
        "token_logprobs": [None if entry is None else _finite(entry.logprob) for _, _, entry in entries],
        "top_logprobs": [alternatives(entry) for _, _, entry in entries],
        "text_offset": [place for place, _, _ in entries],
    }


def prompt_entries(tokenizer: Any, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> list[Any]:
    """The tokens of an echoed prompt for :func:`completion_logprobs`."""
    stream, offset, entries = tokenizer.stream(), 0, []
    for token, logprob in zip(ids, logprobs, strict=True):
        entries.append((offset, token, logprob))
        offset += len(stream.push(token))
    return entries


def chat_logprobs(tokenizer: Any, tokens: Iterable[tuple[int, TokenLogprob]]) -> dict[str, Any]:
    """Log-probabilities in the format of chat completions."""

    def facts(token: int, value: float) -> dict[str, Any]:
        content = token_bytes(tokenizer, token)
        return {"token": token_text(content), "logprob": _finite(value), "bytes": list(content)}

    content = [
        facts(entry.token, entry.logprob) | {"top_logprobs": [facts(*other) for other in entry.top]}
        for _, entry in tokens
    ]
    return {"content": content, "refusal": None}


def _finite(value: float) -> float:
    return max(value, LEAST)


def usage(prompt_tokens: int, choices: Iterable[Choice]) -> dict[str, int]:
    """The numbers of tokens of an answer."""
    new = sum(choice.n_tokens for choice in choices)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}
