"""Text that follows a prompt, as a stream of pieces or whole."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast, Decoder, LanguageModel, decode
from tinyllm.inference.sampling import Sampling, TokenChooser
from tinyllm.inference.stopping import StopFilter


def stream_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str = "",
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 1337,
    stop: str | Sequence[str] = (),
    n_samples: int = 1,
    kv_cache: bool = True,
    autocast: Autocast = nullcontext,
) -> Iterator[tuple[int, str | None]]:
    """Yields ``(sample, piece)`` as text comes, and ``(sample, None)`` once when a sample has ended.

    The pieces of a sample make up the text after the prompt. A piece holds whole characters only. A sample ends before
    the end-of-text token, before a stop string (neither is part of the text; a stop string is looked for in the new
    text, not in the prompt) or after ``max_new_tokens`` tokens. Abandoning the stream early is fine; the model
    is in evaluation mode until the stream is exhausted or closed, and as it was before afterwards.

    Raises:
        UserError: a setting out of range, or a prompt the tokenizer cannot express.
    """
    for key, value in (("max_new_tokens", max_new_tokens), ("n_samples", n_samples)):
        if value < 1:
            raise UserError("out of range", key=key, value=value, hint="give a whole number ≥ 1")
    ids = prompt_ids(tokenizer, prompt)
    decoder = Decoder(
        model, ids, n_samples=n_samples, max_new_tokens=max_new_tokens, kv_cache=kv_cache, autocast=autocast
    )
    chooser = TokenChooser(
        sampling or Sampling(),
        seed=seed,
        n_samples=n_samples,
        vocab_size=tokenizer.vocab_size,
        device=decoder.ids_BT.device,
    )
    chooser.observe(torch.tensor([ids] * n_samples))
    writers = [_Writer(tokenizer, stop_strings(stop)) for _ in range(n_samples)]
    was_training = model.training
    model.train(False)
    try:
        for ids_B in decode(decoder, chooser, max_new_tokens=max_new_tokens):
            for sample, (writer, token) in enumerate(zip(writers, ids_B.tolist(), strict=True)):
                if writer.ended:
                    continue
                if piece := writer.push(token):
                    yield sample, piece
                if writer.ended:
                    yield sample, None
            if all(writer.ended for writer in writers):
                return
        for sample, writer in enumerate(writers):
            if not writer.ended:
                if piece := writer.end():
                    yield sample, piece
                yield sample, None
    finally:
        model.train(was_training)


def generate_text(
    model: LanguageModel,
    tokenizer: Any,
    prompt: str = "",
    *,
    max_new_tokens: int,
    seed: int = 1337,
    stop: str | Sequence[str] = (),
    kv_cache: bool = True,
    autocast: Autocast = nullcontext,
    **sampling: Any,
) -> str:
    """The prompt and one text that follows it; ``sampling`` takes the fields of :class:`Sampling`."""
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
    return prompt + "".join(piece for _, piece in pieces if piece is not None)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's tokens. An empty prompt starts where a document does: after the end-of-text token where the
    tokenizer has one, else after a line end if it knows that, else after token 0."""
    if prompt:
        return [int(i) for i in tokenizer.encode(prompt)]
    if tokenizer.eot_id is not None:
        return [tokenizer.eot_id]
    try:
        return [int(i) for i in tokenizer.encode("\n")] or [0]
    except UserError:
        return [0]


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One stop string, several or none, as a tuple."""
    if stop is None or stop == "":
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise UserError("a stop string must not be empty", key="stop", value=list(stops), hint="leave it out")
    return stops


class _Writer:
    """Makes text of one sample's tokens."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...]) -> None:
        self.eot_id = tokenizer.eot_id
        self.characters = tokenizer.stream()
        self.filter = StopFilter(stops)
        self.ended = False

    def push(self, token: int) -> str:
        if token == self.eot_id:
            return self.end()
        text = self.filter.push(self.characters.push(token))
        self.ended = self.filter.stopped
        return text

    def end(self) -> str:
        self.ended = True
        return self.filter.push(self.characters.flush()) + self.filter.flush()
