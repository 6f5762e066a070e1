"""The thread that writes: texts in turn, cancelled ones end at once, and few models are in memory."""

import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tinyllm.errors import UserError
from tinyllm.inference.conversing import TEXT
from tinyllm.studio.writing.models import CheckpointId, LoadedModel
from tinyllm.studio.writing.pieces import Piece
from tinyllm.studio.writing.writer import Job, State, Writer

LIMIT_S = 60


class Weights:
    """What stands for a model in memory."""


def loaded_model() -> LoadedModel:
    tokenizer: Any = None
    return LoadedModel(model=Weights(), tokenizer=tokenizer, template=None, autocast=nullcontext)


def which(name: str) -> CheckpointId:
    return CheckpointId(Path(name), 0)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


class Script:
    """Work that writes given texts, each when the test allows it, and notes when it is closed."""

    def __init__(self, *texts: str, fails: Exception | None = None) -> None:
        self.texts, self.fails = texts, fails
        self.allowed = threading.Semaphore(0)
        self.asked = 0
        self.closed = False

    def __call__(self, loaded: LoadedModel) -> Generator[Piece, None, None]:
        try:
            for text in self.texts:
                self.asked += 1
                assert self.allowed.acquire(timeout=LIMIT_S)
                yield Piece(TEXT, text)
            if self.fails is not None:
                raise self.fails
        finally:
            self.closed = True

    def allow(self, count: int = 1) -> None:
        self.allowed.release(count)


def text_of(job: Job) -> str:
    return "".join(piece.text for piece in job.pieces)


def test_texts_grow_in_turn_and_end() -> None:
    writer = Writer(load=lambda _: loaded_model())
    first, second = Script("a", "b", "c"), Script("x", "y")
    jobs = [writer.start(which("one"), first)]
    until(lambda: first.asked == 1)
    jobs.append(writer.start(which("one"), second))
    first.allow(9)
    until(lambda: second.asked == 1)
    assert text_of(jobs[0]) == "ab", "the second has its turn before the first has ended"
    second.allow(9)
    until(lambda: all(job.is_over for job in jobs))
    assert [(text_of(job), job.state) for job in jobs] == [("abc", State.DONE), ("xy", State.DONE)]
    assert first.closed and second.closed


def test_a_cancelled_text_ends_before_its_next_token() -> None:
    writer = Writer(load=lambda _: loaded_model())
    script = Script(*"abcdef")
    job = writer.start(which("one"), script)
    until(lambda: script.asked == 1)
    writer.cancel(job)
    script.allow(9)  # the token under way is finished
    until(lambda: job.is_over)
    assert (job.state, text_of(job), script.closed, script.asked) == (State.STOPPED, "a", True, 1)


def test_a_text_that_waits_for_its_model_can_be_cancelled() -> None:
    may_load = threading.Event()

    def slow(_: CheckpointId) -> LoadedModel:
        assert may_load.wait(LIMIT_S)
        return loaded_model()

    writer = Writer(load=slow)
    job = writer.start(which("one"), Script("a"))
    until(lambda: job.state is State.LOADING)
    writer.cancel(job)
    until(lambda: job.is_over)
    assert job.state is State.STOPPED and not may_load.is_set()
    may_load.set()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("damaged file", file="model.safetensors"), "damaged file (model.safetensors)"),
        (RuntimeError("bad\nmagic"), "unexpected error: RuntimeError: bad magic"),
    ],
)
def test_failures_are_one_line_and_the_thread_lives_on(error: Exception, line: str) -> None:
    def load(checkpoint: CheckpointId) -> LoadedModel:
        if checkpoint == which("bad"):
            raise error
        return loaded_model()

    writer = Writer(load=load)
    cannot_load = writer.start(which("bad"), Script("a"))
    script = Script("a", fails=error)
    script.allow()
    fails_later = writer.start(which("good"), script)
    until(lambda: cannot_load.is_over and fails_later.is_over)
    assert (cannot_load.state, cannot_load.error, text_of(cannot_load)) == (State.FAILED, line, "")
    assert (fails_later.state, fails_later.error, text_of(fails_later)) == (State.FAILED, line, "a")
    script = Script("b")
    script.allow()
    afterwards = writer.start(which("good"), script)
    until(lambda: afterwards.is_over)
    assert text_of(afterwards) == "b"


def test_the_model_not_used_for_the_longest_time_makes_room() -> None:
    alive: list[weakref.ref[Weights]] = []
    most = 0

    def load(_: CheckpointId) -> LoadedModel:
        nonlocal most
        loaded = loaded_model()
        alive.append(weakref.ref(loaded.model))
        most = max(most, sum(ref() is not None for ref in alive))
        return loaded

    writer = Writer(load=load, most_models=2)
    for name in ("one", "two", "one", "three", "four"):
        script = Script("a")
        script.allow()
        job = writer.start(which(name), script)
        until(lambda job=job: job.is_over)
        if name == "three":
            assert writer.loaded == [which("one"), which("three")]
    assert writer.loaded == [which("three"), which("four")]
    assert len(alive) == 4 and most == 2, "never more than two, the one being loaded included"


def test_while_all_models_write_the_next_waits() -> None:
    writer = Writer(load=lambda _: loaded_model(), most_models=1)
    first, second = Script("a"), Script("b")
    second.allow()
    writing = writer.start(which("one"), first)
    until(lambda: first.asked == 1)
    waits = writer.start(which("two"), second)
    first.allow()
    until(lambda: waits.is_over)
    assert writing.is_over and text_of(waits) == "b" and writer.loaded == [which("two")]
