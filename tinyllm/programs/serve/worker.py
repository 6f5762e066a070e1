"""The thread that decodes, and what it hands to the event loop."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from tinyllm.inference.batching import Engine, Job, Piece, Request
from tinyllm.programs.serve.metrics import Metrics


class Answer:
    """The jobs of one HTTP request, and the pieces that they have added so far.

    Args:
        streams: hand pieces over as they are made; otherwise all together at the end, which wakes the event loop once
            and not for every token.

    Attributes:
        jobs: one per prompt.
        unfinished: samples that have not ended.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job], *, streams: bool) -> None:
        self.engine, self.jobs, self.streams = engine, list(jobs), streams
        self.unfinished = sum(job.request.n_samples for job in jobs)
        self.gone = False
        self.submitted = time.perf_counter()
        self.newest: dict[tuple[int, int], float] = {}
        """When each sample got its newest token; written by the decoding thread."""
        self.held: list[Piece] = []
        """Pieces that the decoding thread has not handed over."""
        self.left = self.unfinished
        """Samples that have not ended, as the decoding thread sees it."""
        self._received: list[Piece] = []
        self._news = asyncio.Event()

    def receive(self, pieces: list[Piece]) -> None:
        """Take pieces; called on the event loop."""
        self._received += pieces
        self._news.set()

    def cancel(self) -> None:
        """The client is gone: stop generating."""
        self.gone = True
        for job in self.jobs:
            job.cancel()
        self._news.set()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What has been added since the last time, until all samples have ended or the client is gone.

        Raises:
            Exception: the error of a job that failed.
        """
        while self.unfinished and not self.gone:
            await self._news.wait()
            self._news.clear()
            pieces, self._received = self._received, []
            for piece in pieces:
                if piece.job.error is not None:
                    raise piece.job.error
            self.unfinished -= sum(piece.finish is not None for piece in pieces)
            if pieces:
                yield pieces


class Worker:
    """Steps the engines of all models, one after the other, in a thread of its own.

    One thread for all of them: two that decode at once would only compete for the processor.

    Args:
        max_waiting: samples that may wait for a place in the batch of each engine.

    Attributes:
        load: samples of each engine that run or wait; of the event loop.
        cut_off: answers that the end of the program cut off; of the event loop.
    """

    def __init__(self, engines: Sequence[Engine], metrics: Metrics, *, max_waiting: int) -> None:
        self.engines, self.metrics, self.max_waiting = list(engines), metrics, max_waiting
        self.load = dict.fromkeys(engines, 0)
        self.cut_off = 0
        self._inbox: deque[tuple[Engine, Job]] = deque()
        self._answers: dict[int, Answer] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Start the thread; called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step under way."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def capacity(self, engine: Engine) -> int:
        """Most samples of an engine that may run and wait."""
        return engine.max_batch + self.max_waiting

    def submit(self, engine: Engine, requests: Sequence[Request], *, streams: bool) -> Answer:
        """Hand requests to an engine; called on the event loop.

        Raises:
            ValueError: a request that the engine can never serve.
        """
        jobs = [engine.job(request) for request in requests]
        answer = Answer(engine, jobs, streams=streams)
        self.load[engine] += answer.unfinished
        for job in jobs:
            self._answers[id(job)] = answer
            self._inbox.append((engine, job))
        self._wake.set()
        return answer

    def forget(self, answer: Answer) -> None:
        """The answer is complete, or nobody waits for it any more; called on the event loop."""
        answer.cancel()
        for job in answer.jobs:
            if self._answers.pop(id(job), None) is not None:
                self.load[answer.engine] -= job.request.n_samples
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()  # before the inbox is read: what comes later wakes us again
            while self._inbox:
                engine, job = self._inbox.popleft()
                engine.add(job)
            busy = [engine for engine in self.engines if engine.has_work]
            if not busy:
                self._wake.wait()
            for engine in busy:
                self._hand_over(engine.read())  # first tokens need not wait until those of others are made
                self._hand_over(engine.decode())
                if engine.n_decoded:
                    self.metrics.batch_size.observe(engine.n_decoded)

    def _hand_over(self, pieces: list[Piece]) -> None:
        """Count pieces, and give them to the event loop in one call."""
        if not pieces:
            return
        now = time.perf_counter()
        ready: dict[int, Answer] = {}
        n_tokens = 0
        for piece in pieces:
            answer = self._answers.get(id(piece.job))
            n_tokens += piece.token is not None
            if answer is None:
                continue
            self._measure(piece, answer, now)
            answer.held.append(piece)
            answer.left -= piece.finish is not None
            if answer.streams or not answer.left or piece.job.error is not None:
                ready[id(answer)] = answer
        self.metrics.new_tokens += n_tokens
        if ready:
            handed = []
            for answer in ready.values():
                handed.append((answer, answer.held))
                answer.held = []
            self._call(handed)

    def _measure(self, piece: Piece, answer: Answer, now: float) -> None:
        sample = id(piece.job), piece.sample
        before = answer.newest.get(sample)
        if before is not None:
            self.metrics.per_token.observe(now - before)
        elif piece.job.error is None:
            self.metrics.first_token.observe(now - answer.submitted)
            if piece.sample == 0:
                self.metrics.prompt_tokens += len(piece.job.request.ids)
        answer.newest[sample] = now

    def _call(self, handed: list[tuple[Answer, list[Piece]]]) -> None:
        def deliver() -> None:
            for answer, pieces in handed:
                answer.receive(pieces)

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop has ended: nobody is left to tell
            self._stopping = True
