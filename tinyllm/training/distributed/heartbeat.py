"""Who of several ranks is still there, and how far: signs of life in the store that torchrun keeps."""

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
"""Several times the interval: on a busy machine a beat may be late."""
ANSWER_WITHIN_S = 5.0
PACKAGE = str(Path(__file__).parent.parent)


class Beat(NamedTuple):
    """A sign of life, as it is read."""

    number: str
    step: str
    waits: bool
    """The rank has noticed that another one does not answer, and asks which."""
    place: str
    """Where its program is."""

    @classmethod
    def read(cls, text: str) -> "Beat":
        number, step, waits, place = text.split(maxsplit=3)
        return cls(number, step, waits == "waits", place)


class Heartbeat:
    """Writes this rank's step again and again, and reads what the others write.

    The store belongs to the launcher, so it outlives every rank; the connection is one of its own, because a thread
    that waits in another one would hold it.

    Args:
        host, port: of the launcher's store.
        generation: tells the ranks of one start from those of the next, which find the same store.
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
        with suppress(RuntimeError):  # the store is gone: the launcher is, and soon this process
            while not self._stop.wait(EVERY_S):
                self._write()

    def _write(self) -> None:
        self._beats += 1
        waits = "waits" if self._waits else "works"
        self._store.set(f"beat/{self.rank}", f"{self._beats} {self.step} {waits} {place()}")

    def _read(self, name: str) -> str | None:
        return self._store.get(name).decode() if self._store.check([name]) else None

    def tell(self, error: str) -> None:
        """Leave word of what ends this rank, for those that only see it go."""
        with suppress(RuntimeError):
            self._store.set(f"error/{self.rank}", error)

    def diagnosis(self) -> str:
        """A sentence on what is wrong with another rank, as far as can be seen; "" if nothing is.

        It takes :data:`SILENT_AFTER_S`, in which a rank that lives gives a sign, and one that waits too notices it.
        """
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(self._ask()), name="diagnosis", daemon=True)
        asking.start()
        asking.join(timeout=SILENT_AFTER_S + ANSWER_WITHIN_S)  # a connection that is cut does not say so
        return found[0] if found else f"the launcher's store at {self.address} does not answer: is the network down?"

    def _ask(self) -> str:
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
            return "the launcher is gone, and with it the store that the ranks meet in"
        beats = {rank: Beat.read(text) for rank, text in after.items() if text}
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            seen = (f"step {beats[rank].step}" if rank in beats else "the start" for rank in silent)
            named = ", ".join(f"rank {rank} (last seen at {at})" for rank, at in zip(silent, seen, strict=True))
            return f"no sign of life from {named}"
        busy = next((rank for rank in others if not beats[rank].waits), None)
        if busy is None:
            return ""
        return f"rank {busy} is alive but does not answer, at step {beats[busy].step} in {beats[busy].place}"

    def close(self) -> None:
        """Stop writing."""
        self._stop.set()
        self._thread.join(timeout=2 * EVERY_S)


def place() -> str:
    """Where the main thread is in this package, e.g. ``trainer.py:99 (fit)``."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "?"
