"""SIGINT, SIGTERM and SIGUSR1 as a wish to stop after the step, with a checkpoint."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tinyllm.utils.platforms import signals

HANDLED = signals("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """The signal that asked the run to stop, if any came."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number (130, 143, 138), or 0."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: notes the first signal; the second one leaves at once."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Handle the signals inside the block, and as before after it."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in HANDLED}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
