"""Stopwatch: training time with and without pauses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Measures a run's wall time, and its training time without evaluation, sampling and saving.

    Args:
        before: seconds that the run took before this start.
    """

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.perf_counter()
        self._paused = 0.0
        self._mark = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, pauses included."""
        return self._before + self.since_start

    @property
    def since_start(self) -> float:
        """Wall time of this start so far, pauses included."""
        return max(0.0, time.perf_counter() - self._start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the block from the laps."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def lap(self) -> float:
        """Seconds since the last lap, pauses excluded; may be 0 if the clock did not advance."""
        now = time.perf_counter()
        lap = now - self._mark - self._paused
        self._mark, self._paused = now, 0.0
        return lap
