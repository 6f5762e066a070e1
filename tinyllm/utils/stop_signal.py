"""SIGINT, SIGTERM, SIGUSR1 and SIGHUP as a wish to stop after the step, with a checkpoint."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from tinyllm.utils.platforms import signals

HANDLED = signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class StopRequest:
    """The signal that asked the run to stop, if any came."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number (130, 143, 138, 129), or 0."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: notes the first signal; the second one leaves at once."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)


def unless_nohup(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals to handle: SIGHUP is left out where it is ignored, for that is what ``nohup`` asks for."""
    ignored = {number for number in signals("SIGHUP") if signal.getsignal(number) is signal.SIG_IGN}
    return [number for number in numbers if number not in ignored]


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Handle the signals inside the block, and as before after it."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in unless_nohup(HANDLED)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
