"""Text generation: the continuation of prompts, streamed in pieces or as a whole."""

from collections.abc import Collection, Generator, Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import torch

from tinyllm.errors import UserError
from tinyllm.inference.choices import Choice, choices_of, chooser_of
from tinyllm.inference.decoding import Autocast, Decoder, LanguageModel, decode
from tinyllm.inference.sampling import Sampling
from tinyllm.utils.stop_signal import Interrupted, Stopping


class GeneratedPiece(NamedTuple):
    """The text that one token added to one sample."""

    sample: int
    text: str
    """Complete characters; empty while a character, or text that may become a stop string, is incomplete."""
    ended: bool
    """Whether this is the sample's last piece."""
    prompt: int = 0
    """Index of the prompt that the sample continues."""
    choice: Choice | None = None
    """The token and its alternatives, if they were asked for."""


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
    explain: int = 0,
    autocast: Autocast = nullcontext,
) -> Generator[GeneratedPiece, None, None]:
    """Yields the continuation of one or several prompts as it is generated, one piece per token and sample.

    A sample ends at one of the model's end tokens, at a stop string, or after ``max_new_tokens`` tokens. End tokens and
    stop strings are not part of the text. Stop strings are searched in the new text only; a stop string that spells a
    special token stands for that token.

    The model is in evaluation mode until the stream is exhausted or closed; then its mode is restored. Its weights must
    not change before that, since autocast's casts of them are cached.

    Args:
        model: see :class:`tinyllm.inference.decoding.LanguageModel`.
        tokenizer: one of :mod:`tinyllm.tokenizers`.
        prompt: one or several prompts of any length; a batch gives each the text it would get alone.
        seed: seed of the random draws; sample i of a prompt does not depend on the number of samples or prompts.
        stop: stop strings.
        n_samples: samples of each prompt; the model reads a prompt once for all of them.
        kv_cache: cache keys and values; false gives the same text by reading everything again for every token.
        bos: whether to begin with the begin-of-text token; auto: see :func:`bos_of`.
        special: whether special tokens spelled out in a prompt are encoded as such; false: they are text.
        explain: how many alternatives to report with each token; 0: none.
        autocast: returns the context manager in which the model runs.

    Raises:
        UserError: a setting is out of range, or the tokenizer cannot express a prompt.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for key, value in (("max_new_tokens", max_new_tokens), ("n_samples", n_samples), ("prompts", len(prompts))):
        if value < 1:
            raise UserError("out of range", key=key, value=value, hint="give a whole number ≥ 1")
    bos = bos_of(model, tokenizer, bos)
    ids = [prompt_ids(tokenizer, text, bos=bos, special=special) for text in prompts]
    decoder = Decoder(
        model, ids, n_samples=n_samples, max_new_tokens=max_new_tokens, kv_cache=kv_cache, autocast=autocast
    )
    chooser = chooser_of(
        sampling or Sampling(),
        n_top=explain,
        seed=seed,
        n_samples=n_samples,
        n_prompts=len(prompts),
        vocab_size=tokenizer.vocab_size,
        unk_id=tokenizer.unk_id,
        device=model.device,
    )
    chooser.observe_prompts(ids)
    stops = stop_strings(stop)
    ends = end_tokens(tokenizer, stops)
    writers = [
        SampleWriter(tokenizer, context if text else [], stops, ends)
        for text, context in zip(prompts, ids, strict=True)
        for _ in range(n_samples)
    ]
    ended = [False] * len(writers)
    was_training = model.training
    model.train(False)
    torch.autocast_increment_nesting()  # else autocast would empty its cache of cast weights after every token
    try:
        steps = decode(decoder, chooser, max_new_tokens=max_new_tokens, ended=ended)
        for step, chosen in enumerate(steps, start=1):
            for (row, token), choice in zip(chosen, choices_of(chooser), strict=True):
                text = writers[row].write(token, last=step == max_new_tokens)
                ended[row] = writers[row].ended
                yield GeneratedPiece(row % n_samples, text, ended[row], row // n_samples, choice)
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
    special: bool = False,
    autocast: Autocast = nullcontext,
    stopping: Stopping = lambda: False,
    **sampling: Any,
) -> str:
    """A prompt with one continuation. ``sampling`` takes the fields of :class:`Sampling`; the other arguments are those
    of :func:`stream_text`.

    Args:
        stopping: called before each token; true ends the generation.

    Raises:
        Interrupted: ``stopping`` returned true.
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
        special=special,
        autocast=autocast,
    )
    texts = [prompt if special else printed_prompt(tokenizer, prompt)]
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
    """The continuations of each prompt, ``n_samples`` of each; ``settings`` are arguments of :func:`stream_text`."""
    texts = [[""] * n_samples for _ in prompts]
    for piece in stream_text(model, tokenizer, prompts, n_samples=n_samples, **settings):
        texts[piece.prompt][piece.sample] += piece.text
    return texts


def prompt_ids(
    tokenizer: Any, prompt: str, *, bos: bool | str = "auto", special: bool = False, key: str = "prompt"
) -> list[int]:
    """The token ids of a prompt.

    An empty prompt starts like a document: with the token that begins or ends texts, else with a line end, else with
    token 0.

    Args:
        bos: whether the begin-of-text token comes first; auto: if the model's tokenizer adds it.
        special: whether special tokens spelled out in the prompt are encoded as such; false: they are text.
        key: the setting that error messages name.

    Raises:
        UserError: the tokenizer cannot express the prompt, or it is not valid Unicode; the message names the character.
    """
    begin = tokenizer.begin_id
    if bos is True and begin is None:
        hint = "give false or auto; the tokenizer has neither a begin-of-text nor an end-of-text token"
        raise UserError("no begin-of-text token", key="bos", value=True, hint=hint)
    if prompt:
        shown = prompt if len(prompt) <= 40 else prompt[:40] + "…"
        if any("\ud800" <= char <= "\udfff" for char in prompt):  # bytes of a command line that are not UTF-8
            hint = "it contains half a surrogate pair; write it in UTF-8"
            raise UserError("the prompt is not valid UTF-8", key=key, value=shown, hint=hint)
        try:
            ids = [int(i) for i in (tokenizer.matching(True) if special else tokenizer).encode(prompt, strict=True)]
        except UserError as error:
            raise UserError(error.what, key=key, value=shown, hint=error.hint) from error
        adds_bos = bos is True or (bos == "auto" and tokenizer.adds_bos)
        return [begin, *ids] if adds_bos and begin is not None and ids[:1] != [begin] else ids
    if begin is not None:
        return [begin]
    try:
        return [int(i) for i in tokenizer.encode("\n", strict=True)] or [0]
    except UserError:
        return [0]


def bos_of(model: LanguageModel, tokenizer: Any, bos: bool | str) -> bool | str:
    """Whether prompts begin with the begin-of-text token, as :func:`prompt_ids` takes it.

    With ``auto`` a model trained with ``document_mask`` gets it wherever there is one: every document that it has seen
    from the start began with that token. For other models it depends on the tokenizer.
    """
    return True if bos == "auto" and getattr(model, "document_mask", False) and tokenizer.begin_id is not None else bos


def printed_prompt(tokenizer: Any, prompt: str) -> str:
    """The prompt as printed before its continuation: as given, plus the space that separates token ids."""
    text = "".join(map(tokenizer.stream().push, prompt_ids(tokenizer, prompt, bos=False))) if prompt else ""
    return text if text.startswith(prompt) else prompt


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """No stop string, one or several, as a tuple.

    Raises:
        UserError: a stop string is empty.
    """
    if stop is None or stop == "":
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise UserError("a stop string must not be empty", key="stop", value=list(stops), hint="leave it out")
    return stops


class SampleWriter:
    """Decodes the tokens of one sample and stops at an end token or a stop string.

    Args:
        context: the tokens before the sample; some tokenizers decode the first token of a text differently (``▁``).
        ends: tokens that end the text.

    Attributes:
        ended: whether the sample is complete.
        stopped: whether an end token or a stop string ended it, and not its length.
        decoded: number of characters decoded so far, those held back or cut off at a stop string included.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int], stops: tuple[str, ...], ends: Collection[int]) -> None:
        self.ends = ends
        self.characters = tokenizer.stream()
        for token in context:
            self.characters.push(token)
        self.filter = StopFilter(stops)
        self.ended = self.stopped = False
        self.decoded = 0

    def write(self, token: int, *, last: bool) -> str:
        """The text that this token completes.

        Args:
            last: whether no token follows; an incomplete character is then left out.
        """
        is_end = token in self.ends
        characters = self.characters.flush() if is_end else self.characters.push(token)
        self.decoded += len(characters)
        text = self.filter.push(characters)
        self.stopped = self.filter.stopped or is_end
        self.ended = self.stopped or last
        return text + self.filter.flush() if self.ended else text


def end_tokens(tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's own, and those that a stop string spells."""
    return tokenizer.end_ids | {tokenizer.special[text] for text in stops if text in tokenizer.special}


class StopFilter:
    """Passes text through up to the first stop string, which is left out.

    A stop string may span several pieces. Text that may still become one is held back until that is decided, so what
    was returned is never taken back. The stop string that ends first counts; of several that end together, the longest.

    Args:
        stops: the stop strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty.")
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now certain to come before any stop string, and was not returned before."""
        if not self.stops:
            return text
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
        """The text held back, once no more text follows."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest suffix of the text that is a proper prefix of a stop string."""
        return max(
            (n for stop in self.stops for n in range(1, min(len(stop) - 1, len(text)) + 1) if text.endswith(stop[:n])),
            default=0,
        )
