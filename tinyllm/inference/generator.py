"""Text that follows prompts, as a stream of pieces or whole."""

from collections.abc import Collection, Generator, Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import torch

from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast, Decoder, LanguageModel, decode
from tinyllm.inference.sampling import Sampling, TokenChooser
from tinyllm.utils.stop_signal import Interrupted, Stopping


class Piece(NamedTuple):
    """What one token added to one sample."""

    sample: int
    text: str
    """Whole characters; empty where the token only begins a character, or text that may become a stop
    string."""
    ended: bool
    """No more comes for this sample."""
    prompt: int = 0
    """Of which prompt it is a sample."""


def stream_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str | Sequence[str] = "",
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 1337,
    stop: str | Sequence[str] | None = None,
    n_samples: int = 1,
    kv_cache: bool = True,
    bos: bool | str = "auto",
    special: bool = False,
    autocast: Autocast = nullcontext,
) -> Generator[Piece, None, None]:
    """Yields the text that follows the prompt as it comes, a piece for each token of each sample.

    A sample ends with one of the model's end tokens, with a stop string (neither is part of the text; a stop string
    is looked for in the new text, not in the prompt; one that spells a special token is that token) or after
    ``max_new_tokens`` tokens. The model is in evaluation mode until the stream is exhausted or closed, and then as it
    was before; until then its weights must not change, for autocast's rounded copies of them are kept.

    Args:
        model: see :class:`tinyllm.inference.decoding.LanguageModel`.
        tokenizer: of :mod:`tinyllm.tokenizers`.
        prompt: one or several, of any lengths, which are continued together, each as it would be alone.
        seed: of the random numbers; sample i of a prompt is the same whatever the number of samples and prompts.
        n_samples: of each prompt; a prompt is read once for all of them.
        bos: begin with the begin-of-text token; auto: where the model's tokenizer does.
        special: special tokens that a prompt spells are these tokens, not text.
        autocast: makes the context in which the model runs.

    Raises:
        UserError: a setting out of range, or a prompt the tokenizer cannot express.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for key, value in (("max_new_tokens", max_new_tokens), ("n_samples", n_samples), ("prompts", len(prompts))):
        if value < 1:
            raise UserError("out of range", key=key, value=value, hint="give a whole number ≥ 1")
    ids = [prompt_ids(tokenizer, one, bos=bos, special=special) for one in prompts]
    decoder = Decoder(
        model, ids, n_samples=n_samples, max_new_tokens=max_new_tokens, kv_cache=kv_cache, autocast=autocast
    )
    chooser = TokenChooser(
        sampling or Sampling(),
        seed=seed,
        n_samples=n_samples,
        n_prompts=len(prompts),
        vocab_size=tokenizer.vocab_size,
        unk_id=tokenizer.unk_id,
        device=model.device,
    )
    chooser.observe_prompts(ids)
    stops = stop_strings(stop)
    ends = tokenizer.end_ids | {tokenizer.special[one] for one in stops if one in tokenizer.special}
    writers = [
        _Writer(tokenizer, before if one else [], stops, ends)
        for one, before in zip(prompts, ids, strict=True)
        for _ in range(n_samples)
    ]
    ended = [False] * len(writers)
    was_training = model.training
    model.train(False)
    torch.autocast_increment_nesting()  # else autocast rounds all weights anew for every token
    try:
        steps = decode(decoder, chooser, max_new_tokens=max_new_tokens, ended=ended)
        for done, chosen in enumerate(steps, start=1):
            for row, token in chosen:
                text = writers[row].write(token, last=done == max_new_tokens)
                ended[row] = writers[row].ended
                yield Piece(row % n_samples, text, ended[row], row // n_samples)
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        model.train(was_training)


def generate_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str = "",
    *,
    max_new_tokens: int,
    seed: int = 1337,
    stop: str | Sequence[str] | None = None,
    kv_cache: bool = True,
    autocast: Autocast = nullcontext,
    stopping: Stopping = lambda: False,
    **sampling: Any,
) -> str:
    """The prompt and one text that follows it; ``sampling`` takes the fields of :class:`Sampling`.

    Args:
        stopping: asked before each token.

    Raises:
        Interrupted: ``stopping`` said so.
    """
    pieces = stream_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(**sampling),
        seed=seed,
        stop=stop,
        kv_cache=kv_cache,
        autocast=autocast,
    )
    texts = [echo(tokenizer, prompt)]
    with closing(pieces):
        while not stopping():
            piece = next(pieces, None)
            if piece is None:
                return "".join(texts)
            texts.append(piece.text)
    raise Interrupted


def generate_batch(
    model: LanguageModel, tokenizer: Any, prompts: Sequence[str], *, n_samples: int = 1, **settings: Any
) -> list[list[str]]:
    """What follows each prompt, ``n_samples`` texts of each; ``settings`` are arguments of :func:`stream_text`."""
    texts = [[""] * n_samples for _ in prompts]
    for piece in stream_text(model, tokenizer, prompts, n_samples=n_samples, **settings):
        texts[piece.prompt][piece.sample] += piece.text
    return texts


def prompt_ids(
    tokenizer: Any, prompt: str, *, bos: bool | str = "auto", special: bool = False, key: str = "prompt"
) -> list[int]:
    """The prompt's tokens. An empty prompt starts where a document does: after the token that begins or ends a text
    where the tokenizer has one, else after a line end if it knows that, else after token 0.

    Args:
        bos: whether the begin-of-text token comes first; auto: where the model's tokenizer puts it there.
        special: special tokens that the prompt spells are these tokens, not text.

    Raises:
        UserError: the tokenizer cannot express the prompt, or it is no text; the line names ``key`` and the
            character.
    """
    begin = tokenizer.begin_id
    if bos is True and begin is None:
        hint = "false or auto; the tokenizer has no token that begins or ends a text"
        raise UserError("there is no token to begin with", key="bos", value=True, hint=hint)
    if prompt:
        shown = prompt if len(prompt) <= 40 else prompt[:40] + "…"
        if any("\ud800" <= char <= "\udfff" for char in prompt):  # what is not UTF-8 on a command line
            hint = "half a surrogate pair is no character; write it in UTF-8"
            raise UserError("not text", key=key, value=shown, hint=hint)
        try:
            ids = [int(i) for i in (tokenizer.matching(True) if special else tokenizer).encode(prompt, strict=True)]
        except UserError as error:
            raise UserError(error.what, key=key, value=shown, hint=error.hint) from error
        wanted = bos is True or (bos == "auto" and tokenizer.adds_bos)
        return [begin, *ids] if wanted and begin is not None and ids[:1] != [begin] else ids
    if begin is not None:
        return [begin]
    try:
        return [int(i) for i in tokenizer.encode("\n", strict=True)] or [0]
    except UserError:
        return [0]


def echo(tokenizer: Any, prompt: str) -> str:
    """The prompt as it stands before the text: as given, with the space that numbers need between them."""
    text = "".join(map(tokenizer.stream().push, prompt_ids(tokenizer, prompt, bos=False))) if prompt else ""
    return text if text.startswith(prompt) else prompt


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One stop string, several or none, as a tuple."""
    if stop is None or stop == "":
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise UserError("a stop string must not be empty", key="stop", value=list(stops), hint="leave it out")
    return stops


class _Writer:
    """Makes text of one sample's tokens.

    Args:
        context: the tokens before; a tokenizer may write the first one after them in another way (``▁`` for a
            space).
        ends: tokens that end the text.
    """

    def __init__(self, tokenizer: Any, context: list[int], stops: tuple[str, ...], ends: Collection[int]) -> None:
        self.ends = ends
        self.characters = tokenizer.stream()
        for token in context:
            self.characters.push(token)
        self.filter = StopFilter(stops)
        self.ended = False

    def write(self, token: int, *, last: bool) -> str:
        """The text that is certain with this token. ``last``: no other one comes, and a character that is not
        complete by then is left out."""
        at_end = token in self.ends
        text = self.filter.push(self.characters.flush() if at_end else self.characters.push(token))
        self.ended = self.filter.stopped or at_end or last
        return text + self.filter.flush() if self.ended else text


class StopFilter:
    """Passes text through until one of the stop strings appears; the stop string itself is left out.

    A stop string may be spread over several pieces: text that could still become one is held back until it is
    decided, so nothing is ever shown and then taken back. Of several stop strings the one that ends first
    counts, of those that end together the longest.

    Args:
        stops: the strings; none of them may be empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty.")
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to be kept and was not returned before."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        self._held = text[len(text) - self._undecided(text) :]
        return text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """What was held back, once it is certain that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        return max(
            (n for stop in self.stops for n in range(1, min(len(stop) - 1, len(text)) + 1) if text.endswith(stop[:n])),
            default=0,
        )
