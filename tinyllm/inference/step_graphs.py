"""Decoding on a GPU with CUDA graphs: a step of some hundred small kernels becomes one launch.

A step of decoding computes little, so launching its kernels one by one from Python takes longer than they do. A graph
is a recording of the kernels with the addresses that they read and write; it is replayed for every token. So all that
changes from token to token is in memory at fixed addresses: the token ids, the positions and the cache. Shapes are
fixed too: attention reads as many slots of the cache as the recording did, and masks those that are not filled yet.

Shapes: B rows, V vocabulary.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyllm.nn.cache import Cache
from tinyllm.utils.tensors import is_sharded

FEWEST_SLOTS = 128
"""Slots of the cache that attention reads at least. More are read as the text grows, by powers of two, so that a short
text does not read a long cache, and a long one needs few recordings."""

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Records what a function runs on the device, and returns the function that repeats it with the same memory."""


class CudaCapture:
    """Records steps as CUDA graphs, see ``torch.cuda.graph``; a result is overwritten by the next replay of any."""

    def __init__(self) -> None:
        self._pool: Any = None  # shared: the memory that one step needs in between is free for the next

    def __call__(self, step: Step) -> Step:
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def step_graphs(model: Any, cache: Cache | None) -> "StepGraphs | None":
    """Graphs for a model and its cache, or None where steps run without.

    They need a GPU, a cache and whole weights. Training goes without: its samples are short, and other threads use the
    device meanwhile.
    """
    if cache is None or model.device.type != "cuda" or model.training:
        return None
    return None if any(is_sharded(p) for _, p in model.named_parameters()) else StepGraphs(model, cache)


class StepGraphs:
    """The decoding steps of a model with one cache, recorded once per number of rows and of slots that are read.

    If a step cannot be recorded, a warning says why and all steps run as without graphs.

    Args:
        model: see :class:`tinyllm.inference.decoding.LanguageModel`.
        cache: its rows are the first rows of the caches of all steps.
        capture: records a step; None: as a CUDA graph.
    """

    def __init__(self, model: Any, cache: Cache, *, capture: Capture | None = None) -> None:
        self.model, self.cache, self.capture = model, cache, capture or CudaCapture()
        n_rows, device = len(cache.lengths_B), cache.layers[0].buffers[0].device
        self._ids_B1 = torch.zeros(n_rows, 1, dtype=torch.int64, device=device)
        self._positions_B = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self._replays: dict[tuple[int, int], Step] = {}
        self.works = True
        """Whether steps are replayed; false after a failure."""

    def logits(self, ids_B1: Tensor, lengths_B: Tensor) -> Tensor | None:
        """Append a token to each of the first B rows; the logits (B, V) of those that follow, until the next call.

        In the context of ``autocast`` and without gradients, as any step.

        Args:
            lengths_B: tokens in each row so far, on the CPU; advanced by one.

        Returns:
            None: nothing was done, and nothing can be with graphs.
        """
        if not self.works:
            return None
        n_rows, longest = len(ids_B1), int(lengths_B.max()) + 1
        n_slots = min(max(FEWEST_SLOTS, 1 << (longest - 1).bit_length()), self.cache.max_len)
        self._ids_B1[:n_rows].copy_(ids_B1, non_blocking=True)
        self._positions_B[:n_rows].copy_(lengths_B, non_blocking=True)
        if (n_rows, n_slots) not in self._replays and not self._record(n_rows, n_slots):
            return None
        lengths_B += 1
        return self._replays[n_rows, n_slots]()

    def _record(self, n_rows: int, n_slots: int) -> bool:
        """Record a step; returns whether that worked. The cache holds the same as before."""
        ids_B1, fixed = self._ids_B1[:n_rows], FixedCache(self.cache, self._positions_B[:n_rows], n_slots=n_slots)

        def step() -> Tensor:
            logits: Tensor = self.model.logits(self.model(ids_B1, cache=fixed)[:, -1])
            return logits

        recent = [(inputs, inputs.clone()) for layer in fixed.layers for inputs in layer.recent]
        try:
            # Once without recording: libraries allocate their workspaces and kernels are loaded at the first call.
            step()
            for inputs, before in recent:
                inputs.copy_(before)
            # Marks the positions as changed: rotations that were looked up for them would not be part of the recording.
            self._positions_B.add_(0)
            self._replays[n_rows, n_slots] = self.capture(step)
        except RuntimeError as error:
            self.works = False
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            warnings.warn(f"decoding without CUDA graphs: {reason[0]}", stacklevel=2)
        finally:
            for inputs, before in recent:
                inputs.copy_(before)
        return self.works


class FixedCache(Cache):
    """A view of the first rows of a cache for steps of fixed shapes, whose positions are on the device.

    Args:
        cache: holds the buffers.
        positions_B: position of the next token of each row, on the device; never advanced.
        n_slots: slots that attention reads.
    """

    def __init__(self, cache: Cache, positions_B: Tensor, *, n_slots: int) -> None:
        layers = [layer.rows(0, len(positions_B)) for layer in cache.layers]  # views of their own
        for layer in layers:
            layer.read_slots = min(n_slots, layer.n_slots)
        super().__init__(layers, max_len=cache.max_len)
        self.positions_B = positions_B

    @property
    def length(self) -> int:
        """0: that the tokens fit in is checked before a step is replayed."""
        return 0

    @property
    def start(self) -> Tensor:
        """Position of the next token of each row."""
        return self.positions_B

    def advance(self, n_tokens: int) -> None:
        """Do nothing: the positions are set before every step."""
