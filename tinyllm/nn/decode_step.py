"""Whole steps in C++: the next tokens of every row through all layers of a model, in one call of ``decode_step.h``.

From Python, some fifteen small operations per layer take longer to call than to compute (benchmarks/README.md). So the
parts of a model record their operations once (``step_recorder.py``), and a step runs them all.

Each token of a prompt is computed as it would be alone, so the bits of a cache depend neither on how a prompt is cut
nor on what is read together with it.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinyllm.nn.cache import Cache, LayerCache
from tinyllm.nn.step_recorder import Buffer, Op, StepRecorder

MOST_VECTORS = 512
"""Tokens in one call: a long prompt is read in pieces of this many, which bounds the workspace."""


class CacheOfLayer(ctypes.Structure):
    """``LayerCache`` of ``decode_step.h``."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_strides", ctypes.c_long * 3),
        ("value_strides", ctypes.c_long * 3),
        *((name, ctypes.c_long) for name in ("slots", "window", "sinks")),
        ("shared_keys", ctypes.c_void_p),
        ("shared_values", ctypes.c_void_p),
        ("shared_strides", ctypes.c_long * 3),
    )


class DecodeStep:
    """Runs recorded operations.

    Args:
        recorder: has recorded a step.
        hidden: the buffer of its result, in fp32.
        max_len: most positions.
        most_rows: most tokens, of all rows together, for which this is faster than ``forward``.

    Attributes:
        row_bytes: of the workspace of one token.
    """

    def __init__(self, recorder: StepRecorder, hidden: Buffer, *, max_len: int, most_rows: int) -> None:
        self.dtype, self.max_len, self.most_rows = recorder.dtype, max_len, most_rows
        self._run = recorder.kernels.step(recorder.dtype)
        self._tensors = recorder.tensors
        self._ops = (Op * len(recorder.ops))(*recorder.ops)
        self.row_bytes = recorder.row_bytes
        self._hidden = hidden

    def takes(self, ids_BT: Tensor, cache: Cache) -> bool:
        """Whether it can read these tokens."""
        tokens = ids_BT.shape[1]
        return (
            ids_BT.numel() <= self.most_rows
            and not torch.is_grad_enabled()
            and cache.length + tokens <= min(self.max_len, cache.max_len)
            and self.addresses(cache) is not None
            # In a ring, the last of several tokens would overwrite what the first still sees.
            and (tokens == 1 or cache.length + tokens <= cache.base.fewest_slots)
        )

    def can_branch(self, cache: Cache, n_rows: int) -> bool:
        """Whether it can read ``n_rows`` rows that begin with those of this cache (``BranchedCache``)."""
        has_window = any(layer.window for layer in cache.layers)
        return n_rows <= self.most_rows and not has_window and self.addresses(cache) is not None

    def __call__(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, T, C) of the next tokens, whose bits do not depend on other rows. The cache advances by T.

        Raises:
            IndexError: an id is not in the token table; the cache has not advanced.
        """
        rows, tokens = ids_BT.shape
        ids_BT = ids_BT.to(torch.int64)
        most = max(1, MOST_VECTORS // rows)
        if tokens <= most:
            hidden_BTC = self._read(ids_BT, cache, cache.lengths_B)
        else:
            pieces = [
                self._read(ids_BT[:, first : first + most], cache, cache.lengths_B + first)
                for first in range(0, tokens, most)
            ]
            hidden_BTC = torch.cat(pieces, 1)
        cache.advance(tokens)
        return hidden_BTC

    def _read(self, ids_BT: Tensor, cache: Cache, lengths_B: Tensor) -> Tensor:
        (rows, tokens), ids_BT = ids_BT.shape, ids_BT.contiguous()
        workspace = torch.empty(rows * tokens * self.row_bytes, dtype=torch.uint8)
        places = [each.data_ptr() if each is not None else None for each in cache.places()]
        self.run(
            self.addresses(cache),
            ids_BT.data_ptr(),
            lengths_B.data_ptr(),
            tokens=tokens,
            vectors=rows * tokens,
            workspace=workspace,
            first_row=cache.first_row,
            places=places,
        )
        return self.result(workspace, vectors=rows * tokens).view(rows, tokens, -1)

    def run(
        self,
        addresses: Any,
        ids: int,
        lengths: int,
        *,
        tokens: int,
        vectors: int,
        workspace: Tensor,
        first_row: int = 0,
        places: Sequence[int | None] = (None, None, None),
    ) -> None:
        """Call C++.

        Args:
            addresses: see :meth:`addresses`.
            ids, lengths: addresses of int64 numbers: the tokens, and how many each row has so far.
            tokens: of each row.
            vectors: tokens of all rows.
            workspace: ``row_bytes`` for each of them.
            first_row, places: of the cache.

        Raises:
            IndexError: an id is not in the token table.
        """
        wrong = self._run(
            self._ops,
            len(self._ops),
            addresses,
            first_row,
            *places,
            ids,
            lengths,
            tokens,
            vectors,
            workspace.data_ptr(),
            torch.get_num_threads(),
        )
        if wrong >= 0:
            token = ctypes.cast(ids, ctypes.POINTER(ctypes.c_int64))[wrong]
            raise IndexError(f"token {token} is not in the token table")

    def result(self, workspace: Tensor, *, vectors: int) -> Tensor:
        """Hidden states (vectors, C) of a call, in its workspace."""
        start, size = self._hidden.offset * vectors, vectors * self._hidden.width * torch.float32.itemsize
        return workspace[start : start + size].view(torch.float32).view(vectors, self._hidden.width)

    def addresses(self, cache: Cache) -> Any:
        """The addresses of a cache, kept there; None: it has another dtype."""
        base = cache.base
        if base.addresses is None:
            fits = all(buffer.dtype == self.dtype for layer in base.layers for buffer in layer.buffers)
            base.addresses = (CacheOfLayer * len(base.layers))(*map(_addresses, base.layers)) if fits else ()
        return base.addresses or None


class StepSession:
    """Steps of one token for each of the first rows of a cache, with buffers that are allocated once.

    The step of a small model takes a tenth of a millisecond. Preparing each call anew, with its views, checks and
    allocations, takes half as long.

    Args:
        step: can read the cache.
        cache: a whole cache.
    """

    def __init__(self, step: DecodeStep, cache: Cache) -> None:
        rows = len(cache.lengths_B)
        self._step, self._addresses = step, step.addresses(cache)
        self._ids = (ctypes.c_int64 * rows)()
        self._cache, self._lengths = cache, cache.lengths_B.numpy()  # the same memory
        self._most_rows, self._max_len = min(rows, step.most_rows), min(step.max_len, cache.max_len)
        self._workspace = torch.empty(rows * step.row_bytes, dtype=torch.uint8)
        self._hidden: dict[int, Tensor] = {}
        """Where the result is, by number of rows."""

    def hidden(self, ids: Sequence[int]) -> Tensor | None:
        """Append a token to each of the first B rows; hidden states (B, C), until the next call.

        Returns:
            None: nothing was done, since there are too many rows or no room in the cache.

        Raises:
            IndexError: an id is not in the token table.
        """
        rows = len(ids)
        lengths = self._lengths[:rows]
        if rows > self._most_rows or lengths.max() >= self._max_len:
            return None
        self._ids[:rows] = list(ids)
        self._step.run(
            self._addresses,
            ctypes.addressof(self._ids),
            self._cache.lengths_B.data_ptr(),
            tokens=1,
            vectors=rows,
            workspace=self._workspace,
        )
        lengths += 1
        if rows not in self._hidden:
            self._hidden[rows] = self._step.result(self._workspace, vectors=rows)
        return self._hidden[rows]


def step_session(step: DecodeStep | None, cache: Cache) -> StepSession | None:
    """A session, or None where steps in C++ cannot read the cache."""
    if step is None or step.addresses(cache) is None or cache.base is not cache or cache.places()[0] is not None:
        return None
    return StepSession(step, cache)


def _addresses(layer: LayerCache) -> CacheOfLayer:
    keys, values = layer.buffers
    shared: dict[str, Any] = {}
    if layer.shared:
        shared_keys, shared_values = layer.shared
        shared = {"shared_keys": shared_keys.data_ptr(), "shared_values": shared_values.data_ptr()}
        shared |= {"shared_strides": shared_keys.stride()[:3]}
    return CacheOfLayer(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        key_strides=keys.stride()[:3],
        value_strides=values.stride()[:3],
        slots=layer.n_slots,
        window=layer.window,
        sinks=layer.sinks,
        **shared,
    )
