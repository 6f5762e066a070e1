"""Heartbeats of the ranks, in torchrun's store: which rank is alive, at which step, and where it hangs."""

import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import PrefixStore, TCPStore

EVERY_S = 0.5
SILENT_AFTER_S = 2.0
"""Several intervals, because a beat may be late on a busy machine."""
ANSWER_WITHIN_S = 5.0
PACKAGE = str(Path(__file__).parent.parent)


class HeartbeatState(NamedTuple):
    """A heartbeat as read from the store."""

    number: str
    step: str
    waits: bool
    """The rank is itself waiting for a different rank, and running its own diagnosis."""
    place: str
    """The line that its main thread executes, see :func:`place`."""

    @classmethod
    def read(cls, text: str) -> "HeartbeatState":
        number, step, waits, place = text.split(maxsplit=3)
        return cls(number, step, waits == "waits", place)


class Heartbeat:
    """Writes this rank's heartbeat from a thread, and reads those of the other ranks to find out which one failed.

    The store belongs to the launcher, so it outlives every rank. The heartbeat has its own connection, because that of
    the process group may be locked by a waiting thread.

    Args:
        host, port: address of the launcher's store.
        generation: unique to each start, because after a restart the store still holds the old heartbeats.
    """

    def __init__(self, *, host: str, port: int, rank: int, world_size: int, generation: str) -> None:
        self.rank, self.world_size, self.step = rank, world_size, 0
        self.address = f"{host}:{port}"
        self._waits = False
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        self._store: Any = PrefixStore(f"tinyllm/{generation}", store)
        self._stop = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._write()
        self._thread.start()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store died with the launcher, which soon ends this process too
            while not self._stop.wait(EVERY_S):
                self._write()

    def _write(self) -> None:
        self._beats += 1
        waits = "waits" if self._waits else "works"
        self._store.set(f"beat/{self.rank}", f"{self._beats} {self.step} {waits} {place()}")

    def _read(self, name: str) -> str | None:
        return self._store.get(name).decode() if self._store.check([name]) else None

    def report_error(self, error: str) -> None:
        """Publish the error that ends this rank, for the ranks that only see a broken connection."""
        with suppress(RuntimeError):
            self._store.set(f"error/{self.rank}", error)

    def diagnosis(self) -> str:
        """A sentence on which other rank failed and how; "" if no fault is visible.

        Takes :data:`SILENT_AFTER_S`, so that live ranks can write a heartbeat, and waiting ranks one that says so.
        """
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self._diagnose()), name="diagnosis", daemon=True)
        thread.start()
        thread.join(timeout=SILENT_AFTER_S + ANSWER_WITHIN_S)  # reading hangs if the network is down
        no_answer = f"the launcher's store at {self.address} does not answer; the network may be down"
        return answers[0] if answers else no_answer

    def _diagnose(self) -> str:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        try:
            self._waits = True
            self._write()
            before = {rank: self._read(f"beat/{rank}") for rank in others}
            time.sleep(SILENT_AFTER_S)
            for rank in others:
                if error := self._read(f"error/{rank}"):
                    return f"rank {rank} failed: {error}"
            after = {rank: self._read(f"beat/{rank}") for rank in others}
        except RuntimeError:
            return "the launcher is gone, and with it the store of the ranks"
        beats = {rank: HeartbeatState.read(text) for rank, text in after.items() if text}
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            seen = (f"step {beats[rank].step}" if rank in beats else "the start" for rank in silent)
            named = ", ".join(f"rank {rank} (last seen at {at})" for rank, at in zip(silent, seen, strict=True))
            return f"no heartbeat from {named}"
        busy = next((rank for rank in others if not beats[rank].waits), None)
        if busy is None:
            return ""
        return f"rank {busy} is alive but does not answer, at step {beats[busy].step} in {beats[busy].place}"

    def close(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        self._thread.join(timeout=2 * EVERY_S)


def place() -> str:
    """The line of this package that the main thread executes, e.g. ``trainer.py:99 (fit)``."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "?"
