"""Writes checkpoints, from one process or several, synchronously or in the background.

Each writer puts its part, made of full tensors, into one temporary directory. When all parts exist, rank 0 commits:
it writes the index and the manifest, and renames the directory once. The training loop calls the commit, because it may
have to drop a checkpoint that was written in the background.

torch's ``HuggingFaceStorageWriter`` writes the same kind of files but does not fit: without collectives, which a
background thread must not start, each process overwrites the index of the others, and it holds a full file in memory
beside the snapshot. torch's ``HuggingFaceStorageReader`` reads these checkpoints.
"""

import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.runs.checkpoint import name_of
from tinyllm.runs.checkpoint_format import KEPT, Part, publish, read_note, withdraw, write_note, write_part
from tinyllm.utils.files import remove
from tinyllm.utils.write_errors import readable_write_errors


class Saver:
    """Writes this process's part of each checkpoint; on rank 0 it also commits.

    Each save is: :meth:`begin` on every rank; poll :meth:`written` until it is true on all ranks, or block in
    :meth:`wait`; call :meth:`wait` on every rank so that errors are raised; then :meth:`commit` on rank 0.

    Args:
        directory: the run's ``checkpoints`` folder.
        rank: rank of this process; ranks ≥ ``writers`` write nothing.
        writers: number of processes that write a part.
        token: names the temporary directory: the same on all ranks, different at each start; None: random.
        texts: contents of additional files by name, e.g. the configuration.
        facts: additional entries of the manifest.
        keep: number of newest checkpoints to keep.
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
        self._work: _Write | None = None

    def begin(self, *, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], best: bool) -> None:
        """Write this rank's part of the checkpoint of ``step``, or start writing it in the background.

        Errors are raised by the next call, so that a failing rank does not leave the others blocked in a collective.

        Args:
            step: number of finished steps.
            weights: full tensors by name, tied tensors once; no two ranks pass the same name.
            state: plain containers and tensors (loadable with ``weights_only=True``). Entries keyed by parameter
                (``optimizer``, ``average``) are merged over the ranks; all other entries are those of rank 0.
            best: whether the file ``best`` should name this checkpoint; rank 0's value counts.
        """
        if self.rank >= self.writers:
            return
        self.wait()
        if self._work is not None:
            raise RuntimeError("the previous save was not committed")
        if self.snapshot is not None:
            weights, state = self.snapshot.take((dict(weights), dict(state)))
        self.target = self.directory / name_of(step)
        # The step and the token keep the writers of different saves, and of a killed process, in separate folders.
        self._folder = self.directory / f".tmp-{step}-{self.token}"
        self._step, self._best = step, best
        self._work = _Write(partial(self._write, weights, state))
        if self.snapshot is not None:
            self._work.start()
        else:
            self._work.run()

    def written(self) -> bool:
        """Whether this rank has finished writing, successfully or not."""
        return self._work is None or not self._work.is_alive()

    def wait(self) -> None:
        """Wait until this rank has finished writing.

        Raises:
            UserError: writing failed; earlier checkpoints are intact.
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
        """Complete the checkpoint and return its path. Only on rank 0, when all ranks have written their parts.

        Raises:
            UserError: a part is missing, or no space is left; earlier checkpoints are intact.
        """
        if self._work is None:
            raise RuntimeError("commit() without begin()")
        self.wait()
        try:
            assert self._work.part is not None
            others = [read_note(self._folder, rank) for rank in range(1, self.writers)]
            publish(
                self._folder,
                self.target,
                step=self._step,
                parts=[self._work.part, *others],
                facts=self.facts,
                best=self._best,
                keep=self.keep,
            )
        finally:
            self._forget()
        return self.target

    def close(self) -> None:
        """Wait for a running write, then drop a save that was not committed, and its error."""
        if self._work is None:
            return
        if self._work.is_alive():
            self._work.join()
        withdraw(self._folder, self.rank, self.writers)
        self._forget()

    def _write(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Part:
        """Write this rank's part. Only :meth:`commit` publishes it, because the loop may have to drop it."""
        texts = self.texts if self.rank == 0 else {}
        try:
            with readable_write_errors(self.target, kept=KEPT):
                part = write_part(
                    self._folder,
                    writer=self.rank,
                    writers=self.writers,
                    weights=weights,
                    state=state,
                    texts=texts,
                )
            if self.rank > 0:
                write_note(self._folder, self.rank, part)
        except Exception as error:
            if self.rank > 0:
                write_note(self._folder, self.rank, error)
            raise
        return part

    def _forget(self) -> None:
        """Prepare for the next save; rank 0 removes parts that were not published."""
        if self._work is not None and self.rank == 0:
            remove(self._folder)
        self._work = None


class _Write(threading.Thread):
    """Runs ``write`` once, in a thread (``start``) or directly (``run``), and keeps its result or error.

    It is not a daemon thread, so an exiting program waits for the checkpoint.
    """

    def __init__(self, write: Callable[[], Part]) -> None:
        super().__init__(name="checkpoint")
        self._write = write
        self.part: Part | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.part = self._write()
        except Exception as error:
            self.error = error


class Snapshot:
    """Copies nested containers with their tensors to the CPU, reusing the memory of the previous copy.

    Each :meth:`take` overwrites the previous copy. GPU tensors go to pinned memory, so the copies run asynchronously.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, value: Any) -> Any:
        """A copy of ``value`` as it is now; each tensor has its own storage on the CPU."""
        used: dict[tuple[Any, ...], Tensor] = {}
        devices: set[torch.device] = set()
        copy = self._copy(value, (), used, devices)
        self._buffers = used
        # The copies from a GPU are asynchronous; the caller may change its tensors as soon as this returns.
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copy

    def _copy(
        self, value: Any, path: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor], devices: set[torch.device]
    ) -> Any:
        if isinstance(value, Tensor):
            buffer = self._buffers.get(path)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            used[path] = buffer
            if value.is_cuda:
                devices.add(value.device)
            return buffer.copy_(value, non_blocking=value.is_cuda)
        if isinstance(value, dict):
            return {key: self._copy(item, (*path, key), used, devices) for key, item in value.items()}
        if isinstance(value, list | tuple):
            copies = [self._copy(item, (*path, index), used, devices) for index, item in enumerate(value)]
            return copies if isinstance(value, list) else tuple(copies)
        return value
