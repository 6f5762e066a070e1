"""Who of several ranks is still there, and how far: signs of life in the store that torchrun keeps."""

import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

EVERY_S = 0.5
SILENT_AFTER_S = 2.0
"""Several times the interval: on a busy machine a beat may be late."""


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
        self._store.set(f"beat/{self.rank}", f"{self._beats} {self.step}")

    def _read(self, name: str) -> str | None:
        return self._store.get(name).decode() if self._store.check([name]) else None

    def tell(self, error: str) -> None:
        """Leave word of what ends this rank, for those that only see it go."""
        with suppress(RuntimeError):
            self._store.set(f"error/{self.rank}", error)

    def diagnosis(self) -> str:
        """A sentence on what is wrong with another rank, as far as can be seen; "" if nothing is.

        It takes :data:`SILENT_AFTER_S` to see that a rank is silent.
        """
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        try:
            before = {rank: self._read(f"beat/{rank}") for rank in others}
            time.sleep(SILENT_AFTER_S)
            for rank in others:
                if error := self._read(f"error/{rank}"):
                    return f"rank {rank} failed: {error}"
            after = {rank: self._read(f"beat/{rank}") for rank in others}
        except RuntimeError:
            return "the launcher is gone, and with it the store that the ranks meet in"
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            steps = {rank: (after[rank] or "0 0").split()[1] for rank in silent}
            named = ", ".join(f"rank {rank} (last seen at step {step})" for rank, step in steps.items())
            return f"no sign of life from {named}"
        behind = [rank for rank in others if int((after[rank] or "0 0").split()[1]) < self.step]
        return f"rank {behind[0]} is alive but hangs at step {(after[behind[0]] or '0 0').split()[1]}" if behind else ""

    def close(self) -> None:
        """Stop writing."""
        self._stop.set()
        self._thread.join(timeout=2 * EVERY_S)
