"""What a block asks of its attention layer."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tinyllm.nn.cache import LayerCache


class Attention(nn.Module, ABC):
    """Causal self-attention that owns its cache, its accounting and its initialisation."""

    @abstractmethod
    def forward(self, x_BTC: Tensor, *, start: int = 0, cache: LayerCache | None = None) -> Tensor:
        """Attend from positions start … start+T−1 to themselves and all before.

        With a cache, the positions before ``start`` are read from it and these T are added to it; without
        one,
        ``start`` is 0. The same shape comes back.
        """

    @abstractmethod
    def make_cache(self, batch_size: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """An empty memory for ``max_len`` positions."""

    @abstractmethod
    def init_weights(self, *, std: float, residual_std: float) -> None:
        """Draw the weights: those that write into the residual stream with ``residual_std``."""

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Floating-point operations of the forward pass for one token that attends to ``context`` keys."""

    @abstractmethod
    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the cache for one position of one sequence."""
