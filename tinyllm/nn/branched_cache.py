"""Caches of rows that begin with the positions of other rows, as the answers to a prompt begin with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyllm.nn.cache import Cache, LayerCache


class BranchedLayer(LayerCache):
    """What follows the shared positions, in one layer.

    Args:
        shared: the layer that holds them, without a window.
        n_rows, n_new: rows, and most positions that follow in each.
    """

    def __init__(self, shared: LayerCache, *, n_rows: int, n_new: int) -> None:
        self.window, self.sinks, self.n_slots, self.wraps, self.recent = 0, 0, n_new, False, []
        self.shared = shared.buffers
        # Not filled: a step reads only what it has written, and most answers end long before the limit.
        self.buffers = [b.new_empty(n_rows, b.shape[1], n_new, b.shape[3]) for b in shared.buffers]

    def update(self, *new_BGTD: Tensor, start: int | Tensor) -> tuple[list[Tensor], Tensor | None]:
        raise TypeError("only a step in C++ can read and write a branched cache")


class BranchedCache(Cache):
    """Rows that begin with what some rows of another cache hold, and themselves hold only what follows.

    So what all samples of a prompt share is stored and read once, and is in the processor's cache for all but the first
    of them. Moving a row moves its number and no keys. Only ``decode_step.DecodeStep`` can use it.

    Args:
        shared: holds the beginnings, and must not change.
        beginnings: for each row, the row of ``shared`` that it begins with.
        n_new: most positions that follow.
    """

    def __init__(self, shared: Cache, beginnings: Sequence[int], *, n_new: int) -> None:
        layers = [BranchedLayer(layer, n_rows=len(beginnings), n_new=n_new) for layer in shared.layers]
        super().__init__(layers, max_len=shared.length + n_new)
        self._rows_B, self._shared_rows_B = torch.arange(len(beginnings)), torch.tensor(beginnings)
        self._shared_lengths_B = shared.lengths_B[self._shared_rows_B]
        self.lengths_B.copy_(self._shared_lengths_B)

    def places(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self._rows_B, self._shared_rows_B, self._shared_lengths_B

    def rows(self, start: int, stop: int) -> "BranchedCache":
        view = super().rows(start, stop)
        assert isinstance(view, BranchedCache)
        for name in ("_rows_B", "_shared_rows_B", "_shared_lengths_B"):
            setattr(view, name, getattr(self, name)[start:stop])
        return view

    def copy_row(self, source: int, target: int) -> None:
        """Continue row ``source`` as row ``target``; its own place must not be used any more."""
        for values_B in (self._rows_B, self._shared_rows_B, self._shared_lengths_B, self.lengths_B):
            values_B[target] = values_B[source]
