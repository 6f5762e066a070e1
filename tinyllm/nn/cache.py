"""What attention remembers of the tokens it has seen, in buffers of fixed size."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LayerCache(ABC):
    """The memory of one attention layer; its kind is the attention's own affair."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the buffers."""


class KVCache(LayerCache):
    """Keys and values of up to ``max_len`` tokens, with as many heads as the layer has keys for (never
    repeated)."""

    def __init__(
        self,
        *,
        batch_size: int,
        n_kv_heads: int,
        max_len: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch_size, n_kv_heads, max_len, head_dim)
        self.k_BGSD = torch.zeros(shape, device=device, dtype=dtype)
        self.v_BGSD = torch.zeros(shape, device=device, dtype=dtype)

    def update(self, k_BGTD: Tensor, v_BGTD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write the keys and values of positions start … start+T−1; those of positions 0 … start+T−1 come
        back."""
        end = start + k_BGTD.shape[2]
        self.k_BGSD[:, :, start:end] = k_BGTD
        self.v_BGSD[:, :, start:end] = v_BGTD
        return self.k_BGSD[:, :, :end], self.v_BGSD[:, :, :end]

    def nbytes(self) -> int:
        return self.k_BGSD.nbytes + self.v_BGSD.nbytes


class Cache:
    """The memory of a model: one ``LayerCache`` per layer, and how many positions of them are filled.

    Attributes:
        layers: one per block, in order.
        length: positions filled; the next token gets this position.
        max_len: positions there is room for.
    """

    def __init__(self, layers: list[LayerCache], *, max_len: int) -> None:
        self.layers = layers
        self.max_len = max_len
        self.length = 0

    def reset(self) -> None:
        """Forget everything; the buffers stay and are overwritten."""
        self.length = 0

    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes() for layer in self.layers)
