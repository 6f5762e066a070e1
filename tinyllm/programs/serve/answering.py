"""From the engine's pieces to HTTP responses: whole answers and streams of events."""

import asyncio
import json
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinyllm.errors import one_line
from tinyllm.inference.batching import Job, Request
from tinyllm.programs.serve.choices import Choice, Growth, usage
from tinyllm.programs.serve.errors import APIError, invalid
from tinyllm.programs.serve.schema import SampledRequest
from tinyllm.programs.serve.served import ServedModel
from tinyllm.programs.serve.worker import Answer, Worker
from tinyllm.utils.memory import is_out_of_memory

DONE = b"data: [DONE]\n\n"


class Form(ABC):
    """How the choices of an answer are written: as completions or as chat.

    Attributes:
        object, chunk_object: types of a whole answer and of an event.
    """

    object: str
    chunk_object: str
    prefix: str

    def __init__(self, model: str) -> None:
        self.model = model
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    @abstractmethod
    def choice(self, index: int, growth: Growth, job: Job) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def delta(self, index: int, growth: Growth, job: Job) -> list[dict[str, Any]]:
        """What a choice has gained, as it stands in events: one entry per event."""

    def envelope(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The fields around the choices."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}


class Answering:
    """An answer that is being made: its jobs, its choices, its form.

    Args:
        requests: one per prompt; each has ``n`` choices, numbered prompt by prompt.

    Raises:
        APIError: the queue is full (503), or the answer would never fit into it.
    """

    def __init__(
        self, worker: Worker, served: ServedModel, requests: Sequence[Request], body: SampledRequest, form: Form
    ) -> None:
        self.worker, self.body, self.form = worker, body, form
        n_choices = sum(request.n_samples for request in requests)
        most = worker.capacity(served.engine)
        if n_choices > most:
            raise invalid(f"{n_choices} choices (prompts times n) are more than the {most} that this server takes")
        if worker.load[served.engine] + n_choices > most:
            raise APIError(503, "the server is busy: its queue is full; try again", code="queue_full")
        self.answer: Answer = worker.submit(served.engine, requests, streams=bool(body.stream))
        self.choices = [Choice() for _ in range(n_choices)]
        self.first = {}
        start = 0
        for job in self.answer.jobs:
            self.first[id(job)] = start
            start += job.request.n_samples
        self.job_of = [job for job in self.answer.jobs for _ in range(job.request.n_samples)]
        self.prompt_tokens = sum(len(request.ids) for request in requests)

    async def grow(self) -> AsyncIterator[list[int]]:
        """Feed the choices until all have ended; yields the numbers of those that grew.

        Raises:
            APIError: a job failed.
        """
        try:
            async for pieces in self.answer.pieces():
                grown = []
                for piece in pieces:
                    index = self.first[id(piece.job)] + piece.sample
                    self.choices[index].push(piece)
                    grown.append(index)
                yield sorted(set(grown))
        except Exception as error:
            print(f"error: generation failed: {one_line(f'{type(error).__name__}: {error}')}", file=sys.stderr)
            memory = is_out_of_memory(error)
            raise APIError(503 if memory else 500, "not enough memory" if memory else "generation failed") from error

    def usage(self) -> dict[str, int]:
        """The numbers of tokens so far."""
        return usage(self.prompt_tokens, self.choices)

    async def whole(self, http: HttpRequest) -> Response:
        """The answer in one piece.

        Raises:
            APIError: a job failed.
        """
        watcher = asyncio.create_task(_watch(http.receive, self.answer))
        try:
            async for _ in self.grow():
                pass
        except asyncio.CancelledError:
            self.worker.cut_off += 1
            raise
        finally:
            watcher.cancel()
            self.worker.forget(self.answer)
        form = self.form
        taken = [
            form.choice(index, choice.take(), job)
            for index, (choice, job) in enumerate(zip(self.choices, self.job_of, strict=True))
        ]
        return Response(to_json(form.envelope(form.object, taken, usage=self.usage())), media_type="application/json")

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events: everything that is ready goes into one write."""
        form, options = self.form, self.body.stream_options
        shows_usage = options is not None and options.include_usage
        more = {"usage": None} if shows_usage else {}
        try:
            async for grown in self.grow():
                deltas = [
                    delta
                    for index in grown
                    for delta in form.delta(index, self.choices[index].take(), self.job_of[index])
                ]
                if deltas:
                    yield b"".join(_event(form.envelope(form.chunk_object, [delta], **more)) for delta in deltas)
        except APIError as error:
            yield _event(error.body())
            return
        if shows_usage and not self.answer.gone:
            yield _event(form.envelope(form.chunk_object, [], usage=self.usage()))
        yield DONE


class EventStream(Response):
    """The response that streams an answer. However it ends, the answer's places in the batch are freed."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answering.answer
        watcher = asyncio.create_task(_watch(receive, answer))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self.answering.events():
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.answering.worker.cut_off += 1
            raise
        finally:
            watcher.cancel()
            self.answering.worker.forget(answer)


async def _watch(receive: Receive, answer: Answer) -> None:
    """Cancel an answer when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


def to_json(content: Any) -> bytes:
    """JSON in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _event(content: Any) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"
