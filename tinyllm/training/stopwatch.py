"""Training time without its pauses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds of training, with evaluation, sampling and saving taken out for the speed.

    Args:
        before: seconds the run had taken before this process.
    """

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.perf_counter()
        self._paused = 0.0
        self._mark = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds of the run so far, everything included."""
        return self._before + self.of_this_start

    @property
    def of_this_start(self) -> float:
        """Wall seconds since this process began to train."""
        return max(0.0, time.perf_counter() - self._start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the block out of the speed."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def lap(self) -> float:
        """Seconds of training since the last lap, pauses excluded; not above 0 when the clock stood still."""
        now = time.perf_counter()
        lap = now - self._mark - self._paused
        self._mark, self._paused = now, 0.0
        return lap
