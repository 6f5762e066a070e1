"""What a block asks of its attention layer."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tinyllm.nn.cache import LayerCache


class Attention(nn.Module, ABC):
    """Causal self-attention that owns its cache, its accounting and its initialisation.

    Attributes:
        scale: what q·k is multiplied with; a parametrization may change it before the first forward pass.
    """

    scale: float

    @abstractmethod
    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        cache: LayerCache | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Attend from each position to itself and all before it.

        Args:
            x_BTC: tokens at positions start … start+T−1.
            start: position of the first token; (B,) where the rows differ; (B, T), the position of every token, with
                ``doc_ids``. 0 without a cache.
            cache: holds the positions before ``start``; the T new ones are added to it.
            doc_ids: (B, T) document of each token; a token attends to its own document only. Not with a cache.

        Returns:
            (B, T, C)
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

    def decode_flops_per_token(self, context: int) -> int:
        """The same for one token that continues a cache of ``context`` positions, itself included."""
        return self.flops_per_token(context)

    @abstractmethod
    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the cache for one position of one sequence."""

    def cache_slots(self, max_len: int) -> int:
        """How many positions the cache of a sequence of ``max_len`` tokens holds at once."""
        return max_len

    def chosen_kernel(self, device: str, dtype: torch.dtype, seq_len: int) -> str:
        """The kernel that trains on sequences of this length, in words."""
        return type(self).__name__

    def recompiles_per_length(self, device: str, dtype: torch.dtype, seq_len: int) -> bool:
        """Whether that kernel is another sequence of operations for each length, so that none serves all."""
        return False

    def saved_activations(self, device: str, dtype: torch.dtype, seq_len: int) -> int:
        """Values, for each sequence, that this kernel keeps for the backward pass beside its inputs and outputs."""
        return 0
