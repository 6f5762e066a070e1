"""The web server process: a uvicorn server that signals end in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


class Server(uvicorn.Server):
    """A server whose signals end it in order, with exit code 0; a second one cuts requests off."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; uvicorn itself would raise them again after the shutdown."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
