"""Packing: items of different lengths into windows of one size, by best-fit decreasing.

Items are taken from long to short, and each goes into the window with the least room that still holds it; a new window
is opened when none does (Johnson 1973, who shows that it needs at most 11/9 of the fewest possible windows, plus a
constant). Ding et al. 2024 (https://arxiv.org/abs/2404.10830) pack documents for training in this way.
"""

from dataclasses import dataclass

import numpy as np

BUFFER = 2**22
"""Items that are packed together: it bounds the memory of packing, and is so many that more would fill no better."""


@dataclass(frozen=True)
class Packing:
    """Which items each window holds.

    Attributes:
        items: the numbers of all items, window by window.
        bounds: window w holds ``items[bounds[w]:bounds[w + 1]]``.
    """

    items: np.ndarray
    bounds: np.ndarray

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self.bounds) - 1

    def of(self, window: int) -> np.ndarray:
        """The items of a window, in increasing order."""
        return self.items[self.bounds[window] : self.bounds[window + 1]]


def pack(lengths: np.ndarray, size: int) -> Packing:
    """Pack items into as few windows as best-fit decreasing finds; a pure function of its arguments.

    Args:
        lengths: length of each item, from 1 to ``size``.
        size: room of a window.

    Raises:
        ValueError: a length is out of range.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= size:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit windows of {size}")
    kind = np.int32 if len(lengths) < 2**31 else np.int64
    windows = np.empty(len(lengths), dtype=kind)
    n_windows = 0
    for first in range(0, len(lengths), BUFFER):
        chosen = best_fit_decreasing(lengths[first : first + BUFFER], size)
        windows[first : first + BUFFER] = chosen + n_windows
        n_windows += int(chosen.max()) + 1
    items = windows.argsort(kind="stable").astype(kind)
    bounds = np.zeros(n_windows + 1, dtype=np.int64)
    np.cumsum(np.bincount(windows, minlength=n_windows), out=bounds[1:])
    return Packing(items, bounds)


def best_fit_decreasing(lengths: np.ndarray, size: int) -> np.ndarray:
    """The window of each item, numbered in the order in which they are opened.

    Items of equal length, and windows of equal room, are handled together, so that the time depends on the number of
    different lengths more than on the number of items. The result is that of handling one item after the other.
    """
    items = np.argsort(-lengths.astype(np.int64), kind="stable")
    windows = np.empty(len(lengths), dtype=np.int64)
    open_windows: list[list[int]] = [[] for _ in range(size + 1)]  # by room, in the order in which they got that room
    has_room = np.zeros(size + 1, dtype=bool)
    n_windows = done = 0
    counts = np.bincount(lengths, minlength=size + 1)
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            room = length + int(has_room[length:].argmax())
            if not has_room[room]:  # no window has room: open the fewest that hold the rest
                room = size
                needed = -(-left // (size // length))
                open_windows[size] = list(range(n_windows, n_windows + needed))
                n_windows += needed
            # With room for several, a window gets them all: after each it is the one with the least room.
            fit = room // length
            full, rest = divmod(min(left, fit * len(open_windows[room])), fit)
            used = open_windows[room][: full + bool(rest)]
            del open_windows[room][: len(used)]
            numbers = np.repeat(used, [fit] * full + [rest] * bool(rest))
            windows[items[done : done + len(numbers)]] = numbers
            done, left = done + len(numbers), left - len(numbers)
            open_windows[room - fit * length] += used[:full]
            open_windows[room - rest * length] += used[full:]
            for changed in (room, room - fit * length, room - rest * length):
                has_room[changed] = bool(open_windows[changed])
    return windows
