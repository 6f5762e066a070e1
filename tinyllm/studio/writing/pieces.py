"""Pieces of text for a page: what was written, token by token, and what each token was chosen from."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from tinyllm.data.chat.messages import Message
from tinyllm.errors import UserError
from tinyllm.inference.choices import Candidate, Choice
from tinyllm.inference.conversing import NOTE, TEXT, Conversing
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.session import Session
from tinyllm.inference.tools.base import Tool
from tinyllm.studio.writing.models import LoadedModel
from tinyllm.tokenizers import Tokenizer

N_ALTERNATIVES = 10
END = "end"
"""Kind of a piece: the text ends here. Further kinds are those of :mod:`tinyllm.inference.conversing`."""


@dataclass(frozen=True)
class Alternative:
    """A token that might have been chosen, for display; see :class:`tinyllm.inference.choices.Candidate`."""

    text: str
    probability: float
    drawn: float
    excluded_by: str


@dataclass(frozen=True)
class WrittenToken:
    """A token of the text, and the most likely ones in its place."""

    chosen: Alternative
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a text that grows.

    Attributes:
        kind: text, call, result, note or end.
        tokens: the tokens of the piece: mostly one; several where only the last of them completed a character, or
            decided that the text is no stop string.
    """

    kind: str
    text: str
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to write, with the meaning and defaults of ``generate``."""

    sampling: Sampling
    seed: int
    max_new_tokens: int
    stop: str | None = None


def continuation(loaded: LoadedModel, settings: Settings, prompt: str) -> Generator[Piece, None, None]:
    """Continue a prompt; the text is that of ``generate``.

    Raises:
        UserError: the tokenizer cannot express the prompt, or memory runs out.
    """
    session = Session(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        stop=settings.stop,
        explain=N_ALTERNATIVES,
        autocast=loaded.autocast,
    )
    length, context = len(session.prompt_ids(prompt)), loaded.model.max_seq_len
    if length > context:
        yield Piece(NOTE, f"the prompt has {length:,} tokens: the model reads the last {context:,}, its context")
    names = TokenNames(loaded.tokenizer)
    waiting: list[WrittenToken] = []
    n_tokens = 0
    with closing(session.stream(prompt, seed=settings.seed)) as stream:
        for piece in stream:
            n_tokens += 1
            assert piece.choice is not None
            waiting.append(names.written(piece.choice))
            if piece.text:
                yield Piece(TEXT, piece.text, tuple(waiting))
                waiting.clear()
    limit = ", the most that were asked for" if n_tokens == settings.max_new_tokens else ""
    yield Piece(END, f"{n_tokens:,} token{'s' * (n_tokens != 1)}{limit}", tuple(waiting))


def answer(
    loaded: LoadedModel,
    settings: Settings,
    text: str,
    *,
    messages: list[Message],
    tool: Tool | None = None,
    system: str = "",
) -> Generator[Piece, None, None]:
    """Answer a user's message as ``chat`` does.

    Args:
        messages: the conversation so far; it is extended by the message and the answer, also if the answer is cut off.

    Raises:
        UserError: the model has no chat template, or the message alone does not fit into its context.
    """
    if loaded.template is None:
        raise UserError(loaded.why_no_chat)
    conversing = Conversing(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        sampling=settings.sampling,
        tool=tool,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        system=system,
        explain=N_ALTERNATIVES,
        autocast=loaded.autocast,
    )
    conversing.messages += messages
    names = TokenNames(loaded.tokenizer)
    try:
        with closing(conversing.answer(text)) as stream:
            for piece in stream:
                yield Piece(piece.kind, piece.text, tuple(map(names.written, piece.choices)))
    finally:
        messages[:] = conversing.messages[1:] if system else conversing.messages


class TokenNames:
    """Texts of single tokens in which everything can be seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._special = {token: name for name, token in tokenizer.special.items()}

    def written(self, choice: Choice) -> WrittenToken:
        """A choice for display."""
        return WrittenToken(self._alternative(choice.chosen), tuple(map(self._alternative, choice.top)))

    def name(self, token: int) -> str:
        """White space as symbols, special tokens by name; what is no text by its number."""
        if token in self._special:
            return self._special[token]
        text = self.tokenizer.decode([token])
        if not text or "\ufffd" in text:
            return f"{text}#{token}"
        return "".join(SYMBOLS.get(character, character) for character in text)

    def _alternative(self, candidate: Candidate) -> Alternative:
        return Alternative(self.name(candidate.token), *candidate[1:])


SYMBOLS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
