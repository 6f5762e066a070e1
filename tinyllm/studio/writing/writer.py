"""The thread that writes, and the models that it keeps loaded."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from enum import Enum

from tinyllm.errors import UserError, one_line
from tinyllm.studio.writing.models import CheckpointId, LoadedModel, load
from tinyllm.studio.writing.pieces import Piece

MOST_MODELS = 3
"""Models kept in memory: the two of a comparison, and one that may be chosen next."""


class State(Enum):
    """How far a job is."""

    WAITING = "waiting"
    LOADING = "loading the model"
    WRITING = "writing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


Work = Callable[[LoadedModel], Generator[Piece, None, None]]
"""Writes with a loaded model."""


class Job:
    """A text that is being written. The writing thread changes it; pages read it and may cancel it.

    Attributes:
        pieces: what was written so far; only ever appended to.
        error: why it failed, in one line.
    """

    def __init__(self, which: CheckpointId, work: Work) -> None:
        self.which, self.work = which, work
        self.state = State.WAITING
        self.pieces: list[Piece] = []
        self.error = ""
        self.is_cancelled = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.state in (State.DONE, State.STOPPED, State.FAILED)


class Writer:
    """Writes several texts at once, one token of each in turn, in a thread of its own; another one loads models.

    One thread for all texts: two that decode at once would only compete for the processor, and no model is used by two
    threads. The event loop of the pages is never kept waiting.

    At most ``most_models`` models are in memory, those being loaded included: before a further one is loaded, the one
    that was not used for the longest time is dropped. While all are writing, the next waits.
    """

    def __init__(self, *, most_models: int = MOST_MODELS, load: Callable[[CheckpointId], LoadedModel] = load) -> None:
        self.most_models, self._load = most_models, load
        self._models: OrderedDict[CheckpointId, LoadedModel] = OrderedDict()
        """The one that was used last comes last; of the writing thread."""
        self._inbox: deque[Job] = deque()
        self._waiting: list[Job] = []
        self._active: dict[Job, Generator[Piece, None, None]] = {}
        self._loading: CheckpointId | None = None
        self._arrived: deque[tuple[CheckpointId, LoadedModel | str]] = deque()
        """Models that were loaded, or why they could not be."""
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self, which: CheckpointId, work: Work) -> Job:
        """Write with a model; any thread may ask for it."""
        job = Job(which, work)
        self._inbox.append(job)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writing", daemon=True)
                self._thread.start()
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """End a text before its next token; what was written stays."""
        job.is_cancelled = True
        self._wake.set()

    @property
    def loaded(self) -> list[CheckpointId]:
        """The models in memory, the one that was used last at the end."""
        return list(self._models)

    def _run(self) -> None:
        while True:
            self._wake.clear()  # before the inbox is read: what comes later wakes us again
            while self._inbox:
                self._waiting.append(self._inbox.popleft())
            while self._arrived:
                self._receive(*self._arrived.popleft())
            self._drop_cancelled()
            self._begin()
            for job in list(self._active):
                self._step(job)
            can_load = self._waiting and self._loading is None  # a text that has just ended makes room for its model
            if not self._active and not can_load:
                self._wake.wait()

    def _receive(self, which: CheckpointId, outcome: LoadedModel | str) -> None:
        self._loading = None
        if isinstance(outcome, LoadedModel):
            self._models[which] = outcome
            return
        for job in [job for job in self._waiting if job.which == which]:
            self._waiting.remove(job)
            job.error, job.state = outcome, State.FAILED

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.is_cancelled]:
            self._waiting.remove(job)
            job.state = State.STOPPED
        for job in [job for job in self._active if job.is_cancelled]:
            self._end(job, State.STOPPED)

    def _begin(self) -> None:
        """Start what can be written, and load the model that was asked for first."""
        for job in list(self._waiting):
            loaded = self._models.get(job.which)
            if loaded is not None:
                self._waiting.remove(job)
                self._models.move_to_end(job.which)
                self._active[job] = job.work(loaded)
                job.state = State.WRITING
        if self._loading is None and self._waiting and self._has_room():
            self._loading = self._waiting[0].which
            threading.Thread(target=self._load_next, args=[self._loading], name="loading", daemon=True).start()
        for job in self._waiting:
            job.state = State.LOADING if job.which == self._loading else State.WAITING

    def _has_room(self) -> bool:
        """Drop the models that were not used for the longest time, until there is room for one more."""
        in_use = {job.which for job in self._active}
        for which in list(self._models):
            if len(self._models) >= self.most_models and which not in in_use:
                del self._models[which]
        return len(self._models) < self.most_models

    def _load_next(self, which: CheckpointId) -> None:
        try:
            self._arrived.append((which, self._load(which)))
        except Exception as error:  # whatever is wrong with a run, the studio goes on
            self._arrived.append((which, explained(error)))
        self._wake.set()

    def _step(self, job: Job) -> None:
        try:
            job.pieces.append(next(self._active[job]))
        except StopIteration:
            self._end(job, State.DONE)
        except Exception as error:
            job.error = explained(error)
            self._end(job, State.FAILED)

    def _end(self, job: Job, state: State) -> None:
        self._active.pop(job).close()
        job.state = state


def explained(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, UserError):
        return str(error)
    return one_line(f"unexpected error: {type(error).__name__}: {error}")
