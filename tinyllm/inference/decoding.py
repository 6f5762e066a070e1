"""The tokens that follow a prompt, one at a time, with a cache or without.

Past the context both ways follow one rule: when max_seq_len tokens are in view and another one comes, the
last ⌊max_seq_len/2⌋ stay in view, their positions start at 0 again, and the model reads them once. So cached
and uncached decoding see the same tokens at the same positions at every step.

Shapes: B samples, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from tinyllm.inference.sampling import TokenChooser


class LanguageModel(Protocol):
    """What generation and evaluation ask of a model."""

    max_seq_len: int
    vocab_size: int
    training: bool

    @property
    def head_weight(self) -> Tensor:
        """(V, d_model)"""

    def __call__(self, ids_BT: Tensor, *, cache: Any = None) -> Tensor:
        """Hidden states (B, T, d_model) after the last norm; with a cache, of the tokens that follow those in
        it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V)"""

    def make_cache(self, batch_size: int, max_len: int) -> Any:
        """An empty cache, with ``reset()``, on the model's device."""

    def train(self, mode: bool = True) -> Any:
        """Sets ``training``."""


Autocast = Callable[[], AbstractContextManager[Any]]


class Decoder:
    """The tokens in view of B samples that all have the same prompt, and what comes next.

    Args:
        prompt_ids: at least one; of more than max_seq_len the last ones are used.
        max_new_tokens: at least 1; sizes the cache.
        autocast: makes the context in which the model runs.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt_ids: list[int],
        *,
        n_samples: int,
        max_new_tokens: int,
        kv_cache: bool,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.model, self.autocast = model, autocast
        in_view = torch.tensor(prompt_ids[-model.max_seq_len :], device=model.head_weight.device)
        self.length = len(in_view)
        """Tokens in view."""
        most = min(model.max_seq_len, self.length + max_new_tokens - 1)  # that are ever in view
        self.ids_BT = torch.zeros(n_samples, most, dtype=torch.long, device=in_view.device)
        self.ids_BT[:, : self.length] = in_view
        with autocast():  # the cache holds what attention computes in
            self.cache = model.make_cache(n_samples, most) if kv_cache else None
        self.unread = self.length
        """The last tokens in view, which the cache does not hold yet."""

    @torch.no_grad()  # not inference_mode: in it, autocast would round the weights anew for every token
    def logits(self) -> Tensor:
        """(B, V): of the token after those in view."""
        first = self.length - self.unread if self.cache is not None else 0
        with self.autocast():
            hidden_BTD = self.model(self.ids_BT[:, first : self.length], cache=self.cache)
            self.unread = 0
            return self.model.logits(hidden_BTD[:, -1])

    @torch.no_grad()
    def append(self, ids_B: Tensor) -> None:
        """Bring the next token into view."""
        if self.length == self.model.max_seq_len:
            self._shorten()
        self.ids_BT[:, self.length] = ids_B.to(self.ids_BT.device)
        self.length += 1
        self.unread += 1

    def _shorten(self) -> None:
        """Make room: with the token that comes, the last ⌊max_seq_len/2⌋ are in view (at least that one)."""
        kept = max(self.model.max_seq_len // 2, 1) - 1
        self.ids_BT[:, :kept] = self.ids_BT[:, self.length - kept : self.length].clone()
        self.length = self.unread = kept
        if self.cache is not None:
            self.cache.reset()


def decode(decoder: Decoder, chooser: TokenChooser, *, max_new_tokens: int) -> Iterator[Tensor]:
    """Yields the next token id of each sample (B,), on the CPU, max_new_tokens times."""
    for done in range(1, max_new_tokens + 1):
        ids_B = chooser.choose(decoder.logits())
        yield ids_B
        if done < max_new_tokens:
            decoder.append(ids_B)
