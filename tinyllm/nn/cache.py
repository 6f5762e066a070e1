"""Key-value caches: buffers of fixed size for what attention reads of earlier tokens.

Allocated once: buffers that grow with each token would be copied each time.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor


class LayerCache:
    """The cache of one attention layer: a slot per position, or a ring of slots with a window.

    With a window, a position keeps its slot until the position ``window`` later overwrites it; the first ``sinks``
    positions keep theirs. So the buffers hold what the next query sees and nothing else, whatever the length.

    Args:
        shapes: (heads, size) of each cached tensor; two for keys and values.
        max_len: capacity in positions.
        window: positions that a query sees; 0: all.
        sinks: number of first positions that every query sees besides its window.

    Attributes:
        buffers: (B, heads, slots, size) each.
        recent: (B, K−1, C) each: the last inputs of the block's short convolutions, which write them.
        shared: (rows, heads, positions, size) each: what its rows begin with; none, except in ``branched_cache``.
        read_slots: slots that a step of one token returns, filled or not; None: up to the last filled one.
    """

    shared: Sequence[Tensor] = ()
    read_slots: int | None = None

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        max_len: int,
        window: int = 0,
        sinks: int = 0,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.window, self.sinks = window, sinks
        self.n_slots = min(max_len, window + sinks) if window else max_len
        self.wraps = self.n_slots < max_len
        # Zeros and not uninitialized memory: masked keys have weight 0, but 0 · NaN is NaN.
        self.buffers = [
            torch.zeros(batch_size, heads, self.n_slots, size, device=device, dtype=dtype) for heads, size in shapes
        ]
        self.recent: list[Tensor] = []

    def update(self, *new_BGTD: Tensor, start: int | Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Write T tokens and return what their queries attend to.

        Args:
            new_BGTD: one tensor per entry of ``shapes``.
            start: position of the first token; (B,) where the rows differ.

        Returns:
            For each of ``shapes`` a tensor (B, heads, S, size) of the positions that some query sees (others may be
            missing), in order and new ones last; with T = 1, in any order. Then None, or what each query sees where the
            rows differ: with T = 1, (B,) int64 on the device of ``start``, its number of first keys; else a
            (B, 1, T, S) bool mask. With None, each query sees the first ``sinks`` keys and the last ``window`` of the
            rest, up to itself.
        """
        n_new = new_BGTD[0].shape[2]
        if isinstance(start, Tensor):
            return self._append_each(new_BGTD, start) if n_new == 1 else self._update_each(new_BGTD, start)
        end = start + n_new
        if end <= self.n_slots:
            for buffer, new in zip(self.buffers, new_BGTD, strict=True):
                buffer[:, :, start:end] = new
            return [buffer[:, :, :end] for buffer in self.buffers], None
        if n_new == 1:  # a softmax does not depend on the order of its keys, so the ring is returned as it is
            slot = self._slot(start)
            for buffer, new in zip(self.buffers, new_BGTD, strict=True):
                buffer[:, :, slot : slot + 1] = new
            return self.buffers, None
        seen = list(new_BGTD)
        if start:  # read first: new positions overwrite slots that the first of the new queries still see
            old = [*range(min(start, self.sinks)), *range(max(self.sinks, start - self.window + 1), start)]
            slots = _index([self._slot(position) for position in old], new_BGTD[0].device)
            seen = [
                torch.cat((buffer.index_select(2, slots), new.to(buffer.dtype)), dim=2)
                for buffer, new in zip(self.buffers, new_BGTD, strict=True)
            ]
        self._write_last(new_BGTD, start)
        return seen, None

    def _append_each(self, new_BG1D: Sequence[Tensor], start_B: Tensor) -> tuple[list[Tensor], Tensor]:
        # Whether or not a row's ring is full, its query sees exactly the slots that hold a position: the first ones.
        slots_B = start_B
        if self.wraps:
            slots_B = torch.where(start_B < self.n_slots, start_B, self.sinks + (start_B - self.sinks) % self.window)
        device = new_BG1D[0].device
        rows_B, slots_B = torch.arange(len(start_B), device=device), slots_B.to(device)
        for buffer, new in zip(self.buffers, new_BG1D, strict=True):
            buffer[rows_B, :, slots_B] = new[:, :, 0].to(buffer.dtype)
        filled_B = (start_B + 1).clamp(max=self.n_slots)
        filled = int(filled_B.max()) if self.read_slots is None else self.read_slots
        return [buffer[:, :, :filled] for buffer in self.buffers], filled_B

    def _update_each(self, new_BGTD: Sequence[Tensor], start_B: Tensor) -> tuple[list[Tensor], Tensor]:
        n_new, device = new_BGTD[0].shape[2], new_BGTD[0].device
        longest = int(start_B.max()) + n_new
        starts, start_B = start_B, start_B.to(device)  # starts stays on the CPU, where reading it waits for no GPU
        queries_BT = start_B[:, None] + torch.arange(n_new, device=device)
        if not self.wraps:  # no slot that a query sees is overwritten
            rows_B1 = torch.arange(len(start_B), device=device)[:, None]
            for buffer, new in zip(self.buffers, new_BGTD, strict=True):
                buffer[rows_B1, :, queries_BT] = new.transpose(1, 2).to(buffer.dtype)
            filled = min(longest, self.n_slots)
            keys_BS = self._positions(start_B + n_new)[:, :filled]
            seen = [buffer[:, :, :filled] for buffer in self.buffers]
        else:
            keys_BS = torch.cat((self._positions(start_B), queries_BT), dim=1)
            seen = [
                torch.cat((buffer, new.to(buffer.dtype)), dim=2)
                for buffer, new in zip(self.buffers, new_BGTD, strict=True)
            ]
            # Row by row, because each may write a different number of positions.
            for row, start in enumerate(starts.tolist()):
                self.rows(row, row + 1)._write_last([new[row : row + 1] for new in new_BGTD], start)
        keys_B1S, queries_BT1 = keys_BS[:, None], queries_BT[..., None]
        visible_BTS = (keys_B1S >= 0) & (keys_B1S <= queries_BT1)
        if self.window:
            visible_BTS &= (keys_B1S > queries_BT1 - self.window) | (keys_B1S < self.sinks)
        return seen, visible_BTS[:, None]

    def _slot(self, position: int) -> int:
        return position if position < self.n_slots else self.sinks + (position - self.sinks) % self.window

    def _write_last(self, new_BGTD: Sequence[Tensor], start: int) -> None:
        """Write the positions among start … start+T−1 that a later query may see."""
        end = start + new_BGTD[0].shape[2]
        last = [*range(start, min(end, self.sinks)), *range(max(self.sinks, start, end - self.window), end)]
        device = new_BGTD[0].device
        slots = _index([self._slot(position) for position in last], device)
        chosen = _index([position - start for position in last], device)
        for buffer, new in zip(self.buffers, new_BGTD, strict=True):
            buffer.index_copy_(2, slots, new.index_select(2, chosen).to(buffer.dtype))

    def _positions(self, length_B: Tensor) -> Tensor:
        """(B, slots): the position that each slot holds after ``length_B`` positions; −1: empty."""
        slots_S = torch.arange(self.n_slots, device=length_B.device)
        later_BS = length_B[:, None] - 1 - slots_S
        positions_BS = slots_S.expand_as(later_BS)
        if self.wraps:
            turns_BS = later_BS.div(self.window, rounding_mode="floor") * (slots_S >= self.sinks)
            positions_BS = positions_BS + self.window * turns_BS
        return positions_BS.masked_fill(later_BS < 0, -1)

    def rows(self, start: int, stop: int) -> "LayerCache":
        """A view of rows start … stop−1 of the batch; writes go to this cache."""
        view = copy(self)
        view.buffers = [buffer[start:stop] for buffer in self.buffers]
        view.recent = [inputs[start:stop] for inputs in self.recent]
        return view

    def repeat_first(self) -> None:
        """Copy the first row to all others."""
        for buffer in (*self.buffers, *self.recent):
            buffer[1:] = buffer[:1]

    def copy_row(self, source: int, target: int, *, length: int) -> None:
        """Copy one row, which holds ``length`` positions, to another."""
        filled = min(length, self.n_slots)
        for buffer in self.buffers:
            buffer[target, :, :filled] = buffer[source, :, :filled]
        for inputs in self.recent:
            inputs[target] = inputs[source]

    def copy_all(self, other: "LayerCache") -> None:
        """Copy what a cache of the same layer and rows holds, whose capacity is no larger."""
        for mine, its in zip(self.buffers, other.buffers, strict=True):
            mine[:, :, : its.shape[2]] = its
        for mine, its in zip(self.recent, other.recent, strict=True):
            mine.copy_(its)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(buffer.nbytes for buffer in (*self.buffers, *self.recent))


def _index(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


class Cache:
    """The cache of a model: a ``LayerCache`` per layer, and the number of positions filled in each row.

    Attributes:
        max_len: capacity in positions.
        lengths_B: positions filled in each row, which is the position of its next token; int64 on the CPU.
        base, first_row: the cache whose rows this one views, and the first of them; itself and 0 for a whole cache.
        addresses: of the buffers of a whole cache, kept here by ``decode_step.DecodeStep``.
        fewest_slots: slots of the layer that has the fewest.
    """

    def __init__(self, layers: Sequence[LayerCache], *, max_len: int) -> None:
        self._layers: list[LayerCache] | None = list(layers)
        self.max_len = max_len
        self.base, self.first_row = self, 0
        self.addresses: Any = None
        self.fewest_slots = min(layer.n_slots for layer in layers)
        # On the CPU, because the length decides shapes: reading it from a GPU would wait for the GPU at every token.
        self.lengths_B = torch.zeros(self.layers[0].buffers[0].shape[0], dtype=torch.int64, device="cpu")

    @property
    def layers(self) -> list[LayerCache]:
        """One per block, in order."""
        if self._layers is None:  # made when asked for: a step in C++ needs none, and they take longer than it
            stop = self.first_row + len(self.lengths_B)
            self._layers = [layer.rows(self.first_row, stop) for layer in self.base.layers]
        return self._layers

    @property
    def length(self) -> int:
        """Positions filled in the longest row."""
        return int(self.lengths_B.max())

    @property
    def start(self) -> int | Tensor:
        """Position of the next token: an int if it is the same for all rows, else ``lengths_B``."""
        shortest, longest = torch.aminmax(self.lengths_B)
        return int(longest) if shortest == longest else self.lengths_B

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more positions as filled in every row."""
        self.lengths_B += n_tokens

    def rows(self, start: int, stop: int) -> "Cache":
        """A view of rows start … stop−1; writes and lengths go to this cache."""
        view = copy(self)
        view._layers = None
        view.lengths_B, view.first_row = self.lengths_B[start:stop], self.first_row + start
        return view

    def places(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """For each row, its row in the buffers, the row of others that it begins with, and how many positions that has.

        int64 (B,) each. None: row b is row ``first_row`` + b, and begins with no other.
        """
        return None, None, None

    def repeat_first(self) -> None:
        """Copy the first row and its length to all others."""
        for layer in self.layers:
            layer.repeat_first()
        self.lengths_B.fill_(self.lengths_B[0])

    def keep(self, rows: Sequence[int]) -> "Cache":
        """A cache of ``rows`` (ascending) in the same buffers; this one becomes invalid."""
        # Ascending rows only move down, so none is overwritten before it is copied.
        for target, source in enumerate(rows):
            if target != source:
                self.copy_row(source, target)
        return self.rows(0, len(rows))

    def copy_row(self, source: int, target: int) -> None:
        """Copy one row and its length to another."""
        for layer in self.layers:
            layer.copy_row(source, target, length=int(self.lengths_B[source]))
        self.lengths_B[target] = self.lengths_B[source]

    def copy_all(self, other: "Cache") -> None:
        """Copy what a cache of the same model and rows holds, whose capacity is no larger.

        No slot moves: as long as no ring is full, position p is in slot p, and a full one keeps its size.
        """
        for layer, its in zip(self.layers, other.layers, strict=True):
            layer.copy_all(its)
        self.lengths_B.copy_(other.lengths_B)

    def reset(self) -> None:
        """Empty the cache; the buffers stay and are overwritten."""
        self.lengths_B.zero_()

    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes() for layer in self.layers)
