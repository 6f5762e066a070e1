"""A model that is served: its engine, and how requests become tokens."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyllm.data.chat.template import ChatTemplate
from tinyllm.errors import UserError
from tinyllm.inference.batching import Engine, Request
from tinyllm.inference.generator import prompt_ids
from tinyllm.inference.sampling import Sampling
from tinyllm.programs.serve.errors import APIError, invalid
from tinyllm.programs.serve.schema import SampledRequest

SHORT = 2_000
"""Characters; a longer prompt is encoded in another thread, so that other requests go on."""


class EncodedPrompt(NamedTuple):
    """A prompt as the model reads it.

    Attributes:
        ids: its tokens, at least one.
        text: as ``echo`` returns it; empty if nobody asked for it.
        is_empty: the text begins with the continuation.
    """

    ids: list[int]
    text: str
    is_empty: bool = False


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model behind a name.

    Attributes:
        bos: whether a prompt begins with the begin-of-text token: true, false or auto.
        special: whether special tokens spelled out in a prompt are encoded as such.
        created: when its weights were saved, in seconds since 1970.
        template: its chat template; None: it has none.
        why_no_chat: the reason, for clients that ask for chat.
        weight_bytes: bytes of its weights in fp32.
    """

    name: str
    engine: Engine
    bos: bool | str = "auto"
    special: bool = False
    created: int = 0
    template: ChatTemplate | None = None
    why_no_chat: str = "the model was trained without a chat template"
    weight_bytes: int = 0

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    def facts(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "tinyllm",
            "max_model_len": self.engine.max_len,
        }

    async def encode(self, prompt: str | Sequence[int], *, param: str = "prompt", echo: bool = False) -> EncodedPrompt:
        """The tokens of a prompt.

        Args:
            echo: whether the text of token ids is wanted.

        Raises:
            APIError: the tokenizer cannot express it, or an id is out of range.
        """
        if not isinstance(prompt, str):
            ids = self._checked(list(prompt), param)
            return EncodedPrompt(ids, "".join(map(self.tokenizer.stream().push, ids)) if echo else "")
        encode = self._encode_text
        ids = await asyncio.to_thread(encode, prompt, param) if len(prompt) > SHORT else encode(prompt, param)
        return EncodedPrompt(ids, prompt, is_empty=not prompt)

    def _encode_text(self, prompt: str, param: str) -> list[int]:
        try:
            return prompt_ids(self.tokenizer, prompt, bos=self.bos, special=self.special, key=param)
        except UserError as error:
            raise invalid(str(error), param=param) from error

    def _checked(self, ids: list[int], param: str) -> list[int]:
        size = self.tokenizer.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if not ids or wrong is not None:
            what = "no token" if wrong is None else f"token {wrong} is not in the vocabulary of {size}"
            raise invalid(f"{param}: {what}", param=param)
        return ids

    def request(
        self, body: SampledRequest, prompt: EncodedPrompt, *, max_tokens: int | None, seed: int, **more: Any
    ) -> Request:
        """The engine's request for one prompt.

        Args:
            max_tokens: None: as many as the context has room for.

        Raises:
            APIError: a setting out of range, or more tokens than the context has.
        """
        context, length = self.engine.max_len, len(prompt.ids)
        if max_tokens is None:
            max_tokens = max(context - length, 1)
        if length + max_tokens > context:
            asked = f"{length + max_tokens} tokens ({length} in the prompt, {max_tokens} for the completion)"
            message = f"this model's maximum context length is {context} tokens, and the request needs {asked}"
            raise invalid(message, param="max_tokens", code="context_length_exceeded")
        n_samples = body.n or 1
        if n_samples > self.engine.max_batch:
            raise invalid(f"n={n_samples} must be at most {self.engine.max_batch} on this server", param="n")
        return Request(
            ids=prompt.ids,
            context=[] if prompt.is_empty else prompt.ids,
            max_new_tokens=max_tokens,
            sampling=sampling_of(body),
            seed=seed,
            stop=stops_of(body),
            n_samples=n_samples,
            **more,
        )


def seed_of(body: SampledRequest) -> int:
    """The seed of a request; a random one if it has none."""
    return secrets.randbits(63) if body.seed is None else body.seed


def stops_of(body: SampledRequest) -> tuple[str, ...]:
    """The stop strings of a request.

    Raises:
        APIError: one of several is empty.
    """
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stops:
        raise invalid("stop: a stop string must not be empty", param="stop")
    return stops


def sampling_of(body: SampledRequest) -> Sampling:
    """The sampling settings of a request, where null means OpenAI's default.

    Raises:
        APIError: a value out of range.
    """
    temperature = 1.0 if body.temperature is None else body.temperature
    # The most likely token passes every filter, so at temperature 0 they change nothing.
    filters = {} if temperature == 0 else {"top_k": body.top_k, "top_p": body.top_p, "min_p": body.min_p}
    if filters.get("top_p") == 1:
        filters["top_p"] = None
    penalty = 1.0 if body.repetition_penalty is None else body.repetition_penalty
    try:
        return Sampling(temperature=temperature, repetition_penalty=penalty, **filters)  # type: ignore[arg-type]
    except UserError as error:
        raise invalid(str(error), param=error.key) from error


def model_named(models: dict[str, ServedModel], name: str) -> ServedModel:
    """The model of a request.

    Raises:
        APIError: there is none of this name; the message lists those that are there.
    """
    if name not in models:
        there = ", ".join(models)
        raise APIError(404, f"there is no model {name!r} here, only {there}", param="model", code="model_not_found")
    return models[name]
