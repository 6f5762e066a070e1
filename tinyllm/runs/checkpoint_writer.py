"""Writing checkpoints: by one process or several, at once or while training goes on.

Each writer writes its part, whole tensors, below one temporary directory; when all have, rank 0 commits: it writes the
index and the manifest and renames once. With one writer nobody else is to be waited for, so its part and the commit
are one piece of work, in the background too.

torch's ``HuggingFaceStorageWriter`` writes files of the same kind and is not used: without collectives, which a
background thread must not start, each process writes an index of its own tensors over those of the others, and it
holds a whole file in memory beside the snapshot. Its ``HuggingFaceStorageReader`` reads what is written here.
"""

import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.runs.checkpoint import name_of
from tinyllm.runs.checkpoint_format import KEPT, Part, part_of, publish, tell_rank_0, withdraw, write_part
from tinyllm.utils.files import remove, translated


class Saver:
    """Writes this process's part of each checkpoint; that of rank 0 makes the parts a checkpoint.

    The calls of one save, on every rank: :meth:`begin`; :meth:`written` until it is true on all of them, or
    :meth:`wait`; then :meth:`wait` on all for their errors, and :meth:`commit` on rank 0.

    Args:
        directory: the run's checkpoints.
        rank: of this process; one beyond ``writers`` has nothing to write, and its calls do nothing.
        writers: how many processes hand over a part.
        token: the same on all of them, and another for each start of the run; None: a random one.
        texts: further files by name, e.g. the configuration.
        facts: go into the manifest beside the checksums.
        keep: so many of the newest stay.
        asynchronous: write in a background thread, from a snapshot in memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rank: int = 0,
        writers: int = 1,
        token: str | None = None,
        texts: Mapping[str, str],
        facts: Mapping[str, Any],
        keep: int,
        asynchronous: bool,
    ) -> None:
        self.directory, self.rank, self.writers = directory, rank, writers
        self.token = token or secrets.token_hex(4)
        self.texts, self.facts, self.keep = texts, facts, keep
        self.snapshot = Snapshot() if asynchronous else None
        self.target = self._folder = directory
        self._step, self._best = 0, False
        self._work: _Work | None = None

    def begin(self, *, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], best: bool) -> None:
        """Hand over this rank's part of the checkpoint of ``step``.

        Asynchronous: copies it and returns, and it is written meanwhile; else it is written now. An error of writing
        it is told by the next call, not by this one, so that no rank leaves while the others wait for it.

        Args:
            step: finished steps.
            weights: whole tensors by name, a tied tensor once; no name is handed over by two ranks.
            state: plain containers and tensors (loadable with ``weights_only=True``). What is kept by parameter name
                (``optimizer``, ``average``) comes from each rank for its own; of anything else rank 0's counts.
            best: whether ``best`` is to name it; rank 0's counts.
        """
        if self.rank >= self.writers:
            return
        self.wait()
        if self._work is not None:
            raise RuntimeError("the save before this one was not committed")
        if self.snapshot is not None:
            weights, state = self.snapshot.take((dict(weights), dict(state)))
        self.target = self.directory / name_of(step)
        self._folder = self.directory / f".tmp-{step}-{self.token}"
        self._step, self._best = step, best
        self._work = _Work(lambda: self._write(weights, state))
        if self.snapshot is not None:
            self._work.start()
        else:
            self._work.run()

    def written(self) -> bool:
        """Whether nothing is in flight: this rank's files are on the disk, or there was an error."""
        return self._work is None or not self._work.is_alive()

    def wait(self) -> None:
        """Return when nothing is in flight.

        Raises:
            UserError: it could not be written; checkpoints before it are whole.
        """
        work = self._work
        if work is None:
            return
        if work.is_alive():
            work.join()
        if work.error is not None:
            self._forget()
            raise work.error
        if self.rank > 0:
            self._work = None

    def commit(self) -> Path:
        """Make the parts a checkpoint: on rank 0, when all ranks have written theirs. Returns its path.

        Raises:
            UserError: a part is not there, or no space is left; checkpoints before it are whole.
        """
        if self._work is None:
            raise RuntimeError("nothing was handed over")
        self.wait()
        try:
            if self.writers > 1:
                assert self._work.part is not None
                self._publish([self._work.part, *(part_of(self._folder, rank) for rank in range(1, self.writers))])
        finally:
            self._forget()
        return self.target

    def close(self) -> None:
        """Wait for what is in flight. What nobody asked for by then is dropped: a save without commit, an error."""
        if self._work is None:
            return
        if self._work.is_alive():
            self._work.join()
        withdraw(self._folder, self.rank, self.writers)
        self._forget()

    def _write(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Part:
        """This rank's part; of the only rank, the whole checkpoint."""
        texts = self.texts if self.rank == 0 else {}
        try:
            with translated(self.target, kept=KEPT):
                part = write_part(
                    self._folder,
                    writer=self.rank,
                    writers=self.writers,
                    weights=weights,
                    state=state,
                    texts=texts,
                )
            if self.writers == 1:
                self._publish([part])
            elif self.rank > 0:
                tell_rank_0(self._folder, self.rank, part)
        except Exception as error:
            if self.rank > 0:
                tell_rank_0(self._folder, self.rank, error)
            raise
        return part

    def _publish(self, parts: list[Part]) -> None:
        publish(
            self._folder,
            self.target,
            step=self._step,
            parts=parts,
            facts=self.facts,
            best=self._best,
            keep=self.keep,
        )

    def _forget(self) -> None:
        """Be ready for the next save; rank 0 removes what was not published."""
        if self._work is not None and self.rank == 0:
            remove(self._folder)
        self._work = None


class _Work(threading.Thread):
    """Does something once, in a thread or (``run``) at once, and keeps its result or error.

    The thread is no daemon: a program that ends waits for it.
    """

    def __init__(self, do: Callable[[], Part]) -> None:
        super().__init__(name="checkpoint")
        self._do = do
        self.part: Part | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.part = self._do()
        except Exception as error:
            self.error = error


class Snapshot:
    """Copies nested containers and their tensors; memory for tensors on the CPU is kept from one copy to the next.

    What was taken before is overwritten by the next :meth:`take`.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, value: Any) -> Any:
        """The same containers with the values of now; tensors on the CPU, each with a storage of its own."""
        used: dict[tuple[Any, ...], Tensor] = {}
        devices: set[torch.device] = set()
        copy = self._copy(value, (), used, devices)
        self._kept = used
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copy

    def _copy(
        self, value: Any, place: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor], devices: set[torch.device]
    ) -> Any:
        if isinstance(value, Tensor):
            kept = self._kept.get(place)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            used[place] = kept
            if value.is_cuda:
                devices.add(value.device)
            return kept.copy_(value, non_blocking=value.is_cuda)
        if isinstance(value, dict):
            return {key: self._copy(one, (*place, key), used, devices) for key, one in value.items()}
        if isinstance(value, list | tuple):
            copies = [self._copy(one, (*place, index), used, devices) for index, one in enumerate(value)]
            return copies if isinstance(value, list) else tuple(copies)
        return value
