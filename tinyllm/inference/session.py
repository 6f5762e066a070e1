"""Text generation with fixed settings: a model, its tokenizer, and how it is sampled."""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.generator import GeneratedPiece, bos_of, generate_batch, prompt_ids, stream_text
from tinyllm.inference.sampling import Sampling
from tinyllm.utils.memory import memory_for

LESS_MEMORY = "generate fewer samples or prompts at a time, or lower max_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Session:
    """Continues any number of prompts with the same settings.

    It prints nothing and knows no configuration, so a command, a server and a chat can share it. The settings are the
    arguments of :func:`tinyllm.inference.generator.stream_text`.
    """

    model: LanguageModel
    tokenizer: Any
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: str | Sequence[str] | None = None
    n_samples: int = 1
    kv_cache: bool = True
    bos: bool | str = "auto"
    special: bool = False
    explain: int = 0
    autocast: Autocast = nullcontext

    def prompt_ids(self, prompt: str, *, key: str = "prompt") -> list[int]:
        """The tokens of a prompt, as the model will read them.

        Raises:
            UserError: the tokenizer cannot express the prompt; the message names ``key``.
        """
        bos = bos_of(self.model, self.tokenizer, self.bos)
        return prompt_ids(self.tokenizer, prompt, bos=bos, special=self.special, key=key)

    def stream(self, prompts: str | Sequence[str], *, seed: int) -> Generator[GeneratedPiece, None, None]:
        """Yields the continuation of every prompt piece by piece, all samples side by side.

        Raises:
            UserError: a setting is out of range, the tokenizer cannot express a prompt, or memory runs out.
        """
        with memory_for("generation", hint=LESS_MEMORY):
            yield from stream_text(self.model, self.tokenizer, prompts, seed=seed, **self._settings())

    def texts(self, prompts: Sequence[str], *, seed: int) -> list[list[str]]:
        """The continuations of every prompt, ``n_samples`` of each; without the prompts themselves.

        Raises:
            UserError: as :meth:`stream`.
        """
        with memory_for("generation", hint=LESS_MEMORY):
            return generate_batch(self.model, self.tokenizer, prompts, seed=seed, **self._settings())

    def _settings(self) -> dict[str, Any]:
        names = [each.name for each in fields(self) if each.name not in ("model", "tokenizer")]
        return {name: getattr(self, name) for name in names}
