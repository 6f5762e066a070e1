"""SIGINT, SIGTERM, SIGUSR1 and SIGHUP as a wish to stop after the step, with a checkpoint."""

import os
import signal
import threading
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


class EarlyInterrupt:
    """Handler of a Ctrl-C that comes before anything listens: ``KeyboardInterrupt`` as usual, and it is remembered.

    A library that catches everything while it is imported would swallow the exception, and the run would train on.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextmanager
def remembering_interrupts() -> Iterator[None]:
    """Let :func:`listening` know of a Ctrl-C that came before it inside the block; another handler is left alone."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, EarlyInterrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Handle the signals inside the block, and as before after it."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in unless_nohup(HANDLED)}
    early = before.get(signal.SIGINT)
    if isinstance(early, EarlyInterrupt) and early.came:
        request.signal = signal.SIGINT
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
