"""Data loading: training batches in the sampler's order, evaluation batches from beginning to end."""

import atexit
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tinyllm.data.batch import Batch, WindowSource
from tinyllm.data.chat.rows import ConversationSplit
from tinyllm.data.documents import document_ids
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE
from tinyllm.utils.platforms import blocked_signals, ignore, signals
from tinyllm.utils.stop_signal import HANDLED


def train_batches(
    source: WindowSource,
    *,
    start_step: int,
    end_step: int,
    batch_size: int,
    grad_accum_steps: int = 1,
    rank: int = 0,
    world_size: int = 1,
    shift: int = 0,
    length_at: Callable[[int], int] | None = None,
    workers: int = 0,
    prefetch_factor: int = 2,
    persistent_workers: bool = True,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Micro-batches of steps start_step … end_step−1, in order.

    Micro-batch m of rank r at step s holds the samples s·G + (m·world_size + r)·batch_size + 0 … batch_size−1
    with G = batch_size·grad_accum_steps·world_size, so the samples of a step do not depend on how it is divided. They
    follow from the arguments alone; the global random generators are not touched.

    Args:
        shift: added to every sample number. If earlier steps had a different batch size, it is the number of samples
            they consumed minus the number this size would have, so that the order continues where it was.
        length_at: the number of tokens that a step reads of each window, the first ones; None: all. Which windows a
            step reads does not depend on it.
        workers: processes that prepare batches in advance; 0: this process prepares each on demand. The batches are the
            same.
        prefetch_factor: batches that each worker prepares in advance.
        persistent_workers: keep the workers for all epochs instead of starting new ones in each.
        pin_memory: return page-locked tensors, for asynchronous copies to a GPU.

    Raises:
        UserError: a worker was killed.
    """
    micro_batches = _MicroBatches(source, batch_size, grad_accum_steps, rank, world_size, shift, length_at)
    numbers = range(start_step * grad_accum_steps, end_step * grad_accum_steps)
    if workers == 0:
        for number in numbers:
            batch = micro_batches[number]
            yield batch.pin_memory() if pin_memory else batch
        return
    for numbers_of_epoch in [numbers] if persistent_workers else micro_batches.by_epoch(numbers):
        loader = DataLoader(
            micro_batches,
            batch_size=None,
            sampler=numbers_of_epoch,
            num_workers=workers,
            prefetch_factor=prefetch_factor,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # by default the iterator would draw from the global generator
        )
        yield from _iterate_with_cleanup(loader, len(numbers_of_epoch))


@dataclass(frozen=True)
class _MicroBatches(Dataset[Batch]):
    """The micro-batches of one rank; number step·grad_accum_steps + m is micro-batch m of a step."""

    source: WindowSource
    batch_size: int
    grad_accum_steps: int
    rank: int
    world_size: int
    shift: int
    length_at: Callable[[int], int] | None

    def __getitem__(self, number: int) -> Batch:
        first = self._first_sample(number)
        batch = self.source.batch(np.arange(first, first + self.batch_size))
        if self.length_at is None:
            return batch
        return batch.shortened(self.length_at(number // self.grad_accum_steps))

    def by_epoch(self, numbers: range) -> Iterator[range]:
        """``numbers``, divided by the epoch in which each micro-batch starts."""
        start = numbers.start
        while start < numbers.stop:
            epoch = self._first_sample(start) // self.source.windows_per_epoch
            stop = start + 1
            while stop < numbers.stop and self._first_sample(stop) // self.source.windows_per_epoch == epoch:
                stop += 1
            yield range(start, stop)
            start = stop

    def _first_sample(self, number: int) -> int:
        return self.shift + (number * self.world_size + self.rank) * self.batch_size


def _iterate_with_cleanup(loader: DataLoader[Batch], count: int) -> Iterator[Batch]:
    """Yield the batches of ``loader``, whose workers end with this generator or with the program.

    At exit Python sends SIGTERM to its child processes and waits for them, but the workers ignore it. After an uncaught
    error, whose traceback keeps this generator alive, the program would hang; hence the ``atexit`` callback.
    """
    child_handlers = [(number, signal.getsignal(number)) for number in signals("SIGCHLD")]
    with blocked_signals(HANDLED):
        iterator_holder = [iter(loader)]  # starts the workers, which inherit the blocked signals
    if threading.current_thread() is threading.main_thread():
        # Undo torch's SIGCHLD handler, which raises wherever the program happens to be when a worker dies. A dead
        # worker is noticed anyway when the next batch is requested.
        for number, handler in child_handlers:
            signal.signal(number, handler or signal.SIG_DFL)
    atexit.register(iterator_holder.clear)
    try:
        for _ in range(count):
            with _naming_dead_workers(iterator_holder[0]):
                batch = next(iterator_holder[0])
            yield batch
    finally:
        atexit.unregister(iterator_holder.clear)
        iterator_holder.clear()


@contextmanager
def _naming_dead_workers(batches: Any) -> Iterator[None]:
    """Turn the death of a worker into a :class:`UserError`; torch reports it in many ways, e.g. a broken connection.

    Args:
        batches: iterator of a ``DataLoader`` with workers.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        for worker in batches._workers:
            worker.join(0.2)
        dead = [str(worker.pid) for worker in batches._workers if worker.exitcode is not None]
        if not dead:
            raise
        raise UserError(
            "a data loading worker was killed",
            key="dataloader.workers",
            value=len(batches._workers),
            hint=f"process {', '.join(dead)}; it may have run out of memory; use fewer workers or a smaller"
            " prefetch_factor; the last checkpoint is intact",
        ) from error


def _ignore_signals(worker: int) -> None:
    """Ignore stop signals, which reach the whole process group: training still needs the batches of its last step."""
    ignore(HANDLED)  # on these, training finishes its current step


def eval_batches(
    split: Split | ConversationSplit,
    *,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None = None,
    stride: int | None = None,
) -> Iterator[Batch]:
    """Fixed windows over the whole split; every token but the first is predicted exactly once.

    Windows are adjacent; the last is padded with inputs 0 and targets ``IGNORE``. The first token of the split, or of
    each row if the data have rows, is never predicted. The last batch may have fewer windows. Of conversations, every
    target is predicted; each is a row of its own.

    Args:
        max_tokens: predict only this many tokens, the first ones; None: all.
        stride: distance between windows. Below ``seq_len`` they overlap, and a window predicts only what the one before
            did not: except in the first window, every prediction has a context of at least ``seq_len − stride`` tokens.

    Raises:
        UserError: stride is not within 1 … seq_len.
    """
    if stride is not None and not 1 <= stride <= seq_len:
        raise UserError("out of range", key="stride", value=stride, hint=f"from 1 to seq_len ({seq_len})")
    if isinstance(split, ConversationSplit):
        if stride not in (None, seq_len):
            hint = "conversations are rows of their own, which no window crosses; leave it out"
            raise UserError("the key has no effect here", key="stride", value=stride, hint=hint)
        yield from split.eval_batches(seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens)
        return
    inputs, targets = [], []
    for row in _rows_to_predict(split, max_tokens):
        for first, predicted, stop in _windows(row, seq_len, stride or seq_len):
            ids = split.read(first, stop + 1)
            window = np.zeros(seq_len, dtype=np.int64)
            window[: stop - first] = ids[:-1]
            target = np.full(seq_len, IGNORE, dtype=np.int64)
            target[predicted - first : stop - first] = ids[1 + predicted - first :]
            inputs.append(window)
            targets.append(target)
            if len(inputs) == batch_size:
                yield _stacked(inputs, targets, split.eot_id)
                inputs, targets = [], []
    if inputs:
        yield _stacked(inputs, targets, split.eot_id)


def _stacked(inputs: list[np.ndarray], targets: list[np.ndarray], eot_id: int | None) -> Batch:
    inputs_BT = torch.from_numpy(np.stack(inputs))
    return Batch(inputs=inputs_BT, targets=torch.from_numpy(np.stack(targets)), doc_ids=document_ids(inputs_BT, eot_id))


def eval_bytes(
    split: Split | ConversationSplit, *, seq_len: int | None = None, max_tokens: int | None = None
) -> int | None:
    """UTF-8 bytes of the tokens that :func:`eval_batches` predicts; None if the data are not text."""
    if isinstance(split, ConversationSplit):
        return split.eval_bytes(seq_len=seq_len or split.n_tokens, max_tokens=max_tokens)
    counts = [split.byte_count(row.start + 1, row.stop + 1) for row in _rows_to_predict(split, max_tokens)]
    return None if None in counts else sum(count for count in counts if count is not None)


def eval_tokens(split: Split | ConversationSplit, *, max_tokens: int | None = None) -> int:
    """Number of tokens that :func:`eval_batches` predicts; of conversations, of those that it reads."""
    if isinstance(split, ConversationSplit):
        return int(split.lengths[split.to_evaluate(split.n_tokens, max_tokens)].sum())
    return sum(len(row) for row in _rows_to_predict(split, max_tokens))


def _rows_to_predict(split: Split, max_tokens: int | None) -> Iterable[range]:
    """Per row, the positions whose next token is predicted."""
    length = split.row_length or split.n_tokens
    left = split.n_tokens if max_tokens is None else max_tokens
    for start in range(0, split.n_tokens, length):
        row = range(start, start + min(length - 1, left))
        if not row:
            return
        yield row
        left -= len(row)


def _windows(row: range, seq_len: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Each window over ``row``: (first input, first input that predicts, end of inputs)."""
    predicted = row.start
    first = row.start
    while predicted < row.stop:
        stop = min(first + seq_len, row.stop)
        yield first, predicted, stop
        predicted = stop
        first += stride
