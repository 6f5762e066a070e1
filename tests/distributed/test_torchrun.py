"""Runs under torchrun: signals, a killed launcher, a restart in place, errors shown once."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.copies import SHARED, run
from tests.support.elsewhere import wait_for
from tests.support.launched import Torchrun, errors, gone, wait_for_steps
from tests.support.training_runs import digest, metrics
from tinyllm.runs.checkpoint import find

pytestmark = pytest.mark.slow
OPTIONS = ("trainer.max_steps=60", "trainer.checkpoint_every=10", "trainer.eval_every=20", "trainer.eval_tokens=100")
SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
Launch = Callable[..., Torchrun]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start torchrun, and clean up its processes."""
    started: list[Torchrun] = []

    def begin(*overrides: str, **named: object) -> Torchrun:
        started.append(Torchrun(*overrides, **named))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks."""
    return run(2, tmp_path_factory.mktemp("whole") / "run", *SHARED, corpus, *OPTIONS)


def same(place: Path, whole: Path) -> bool:
    return digest(place) == digest(whole) and metrics(place) == metrics(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.exhaustive)])
def test_a_signal_to_torchrun_stops_all_ranks_after_the_step(
    number: signal.Signals, launch: Launch, whole: Path, corpus: str, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    options = (*SHARED, corpus, *OPTIONS, f"run.dir={place}", "resume=auto")
    running = launch(*options, flags=(SIGNALS,))
    wait_for_steps(place / "metrics.jsonl", 5)
    ranks = running.ranks()
    running.signal(number)
    answer = running.answer()
    assert answer.code == 1  # torchrun's, whatever its ranks answered
    assert errors(answer) == []
    assert find(place).step == len(metrics(place)) < 60
    assert f"resume={place}" in answer.out
    assert all(gone(pid) for pid in ranks.values())
    again = launch(*options).answer()
    assert again.code == 0
    assert same(place, whole)


def test_ranks_stop_with_a_checkpoint_when_torchrun_is_killed(launch: Launch, corpus: str, tmp_path: Path) -> None:
    """They notice its death instead of training on alone."""
    place = tmp_path / "run"
    running = launch(*SHARED, corpus, *OPTIONS, f"run.dir={place}", "trainer.max_steps=100000")
    wait_for_steps(place / "metrics.jsonl", 5)
    ranks = running.ranks()
    running.signal(signal.SIGKILL)
    running.process.wait()
    wait_for(lambda: all(gone(pid) for pid in ranks.values()))
    assert find(place).step == len(metrics(place))


def test_a_rank_is_killed_and_torchrun_starts_all_again(
    launch: Launch, whole: Path, corpus: str, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    options = (*SHARED, corpus, *OPTIONS, f"run.dir={place}", "resume=auto")
    running = launch(*options, flags=("--max-restarts=2",), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    wait_for_steps(place / "metrics.jsonl", 15)
    os.kill(running.ranks()[1], signal.SIGKILL)
    answer = running.answer()
    assert answer.code == 0, answer
    assert same(place, whole)


@pytest.mark.exhaustive
def test_a_rank_fails(launch: Launch, corpus: str, tmp_path: Path) -> None:
    """The first line is that of the failed rank, although rank 0 ends too."""
    answer = launch(*SHARED, corpus, f"run.dir={tmp_path / 'run'}", fault="raise@step=5,rank=1").answer()
    assert answer.code == 1
    assert errors(answer)[0] == "error: RuntimeError: TINYLLM_FAULT=raise@step=5,rank=1 (rank 1, step 5)"


@pytest.mark.exhaustive
def test_a_user_error_is_shown_once(launch: Launch, corpus: str, tmp_path: Path) -> None:
    """One that every rank raises, and one that only rank 0 raises."""
    answer = launch(*SHARED, corpus, "trainer.max_steps=-1", f"run.dir={tmp_path / 'run'}").answer()
    assert answer.code == 1
    assert len(errors(answer)) == 1 and "trainer.max_steps=-1" in errors(answer)[0]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    answer = launch(*SHARED, corpus, f"run.dir={tmp_path / 'run'}").answer()
    assert answer.code == 1
    assert len(errors(answer)) == 1 and str(tmp_path / "run") in errors(answer)[0]


@pytest.mark.exhaustive
def test_ranks_disconnect_in_order(launch: Launch, corpus: str, tmp_path: Path) -> None:
    """In another order, one process in twelve aborts."""
    options = (*SHARED, corpus, "trainer.max_steps=1")
    answers = [launch(*options, f"run.dir={tmp_path / str(number)}").answer() for number in range(5)]
    assert [answer.code for answer in answers] == [0] * 5
