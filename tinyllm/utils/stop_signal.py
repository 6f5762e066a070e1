"""Requests to stop: by SIGINT, SIGTERM, SIGUSR1 or SIGHUP, or because the parent process has ended.

The training loop stops after the current step and saves a checkpoint; a second signal exits at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from tinyllm.utils.platforms import signals

HANDLED = signals("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
PARENT = "TINYLLM_PARENT"
"""Environment variable: PID of the parent; training stops when it exits."""
POLL_S = 0.5
"""Seconds between checks of the parent process."""

Stopping = Callable[[], bool]
"""Called between batches or tokens: whether to stop. With several ranks it is a collective: all ranks must call it."""


class Interrupted(Exception):
    """An evaluation or a sample was abandoned because the run is stopping; it has no result."""


class StopRequest:
    """The signal that asked the run to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number (130, 143, 138, 129); 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: records the first signal, exits at the second."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)


def unless_nohup(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals to handle: without SIGHUP if it is ignored, as ``nohup`` arranges."""
    ignored = {number for number in signals("SIGHUP") if signal.getsignal(number) is signal.SIG_IGN}
    return [number for number in numbers if number not in ignored]


class EarlyInterrupt:
    """SIGINT handler for the time before :func:`listening`: raises ``KeyboardInterrupt`` and remembers it.

    Some libraries catch every exception during their import. Otherwise the run would ignore the Ctrl-C.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextmanager
def remembering_interrupts() -> Iterator[None]:
    """Remember a Ctrl-C inside the block for a later :func:`listening`; handlers of other code are left unchanged."""
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
    """Turn signals into a :class:`StopRequest` inside the block; restores the handlers after it."""
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


def end_with_parent() -> None:
    """Send this process a single SIGTERM when its parent ends, for whatever reason.

    Linux could do so itself (``PR_SET_PDEATHSIG``), but sends a signal for each thread of the parent that ends, and
    the second one would exit without a checkpoint.
    """
    _watch(os.getppid())


def end_with_caller() -> None:
    """:func:`end_with_parent`, if the parent requested it with :data:`PARENT`.

    Removes the variable from the environment, because children of this process have a different parent.
    """
    caller = os.environ.pop(PARENT, "")
    if caller.isdecimal():
        _watch(int(caller))


def _watch(parent: int) -> None:
    end_after(partial(_wait_for_end, parent))


def end_after(wait: Callable[[], object]) -> None:
    """Send this process a single SIGTERM when ``wait``, called in a thread, returns."""
    threading.Thread(target=_terminate_after, args=(wait,), name="parent", daemon=True).start()


def _wait_for_end(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)


def _terminate_after(wait: Callable[[], object]) -> None:
    wait()
    os.kill(os.getpid(), signal.SIGTERM)
