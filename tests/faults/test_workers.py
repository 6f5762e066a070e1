"""Data loading workers that die or fail."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.elsewhere import Elsewhere, wait_for
from tests.support.training_runs import SMALL, logged, train
from tinyllm.programs.training_process import descendants
from tinyllm.runs.checkpoint import find


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_its_last_checkpoint_intact(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("trainer.max_steps=100000", "trainer.checkpoint_every=5", "dataloader.workers=2")
    elsewhere = Elsewhere("dataset=text", corpus, *SMALL, *options, f"run.dir={run}")
    wait_for(lambda: [step for step in logged(run, "step") if step > 5])
    victim = descendants(elsewhere.pid)[0]
    os.kill(victim, signal.SIGKILL)
    answer = elsewhere.answer()
    assert answer.code == 2, answer
    assert answer.err.startswith("error: a data loading worker was killed (dataloader.workers=2): ")
    assert f"process {victim}" in answer.err and "memory" in answer.err and len(answer.err.splitlines()) == 1
    step = find(run, tell=lambda text: None).step
    assert step >= 5 and step % 5 == 0
    assert train(f"resume={run}", f"trainer.stop_after_steps={step + 1}", "dataloader.workers=0") == 0


def test_an_error_in_a_worker_is_shown_as_the_error_of_the_run(corpus: str, tmp_path: Path) -> None:
    """With its own message, not one about workers."""
    shared = ("dataset=text", corpus, *SMALL, "trainer.max_steps=100000", "dataloader.workers=1")
    elsewhere = Elsewhere(*shared, f"run.dir={tmp_path / 'run'}", first=spoil_the_sampler)
    answer = elsewhere.answer()
    assert answer.code == 1 and "error: OSError" in answer.err and "the disk went away" in answer.err, answer
    assert len(answer.err.splitlines()) == 1


def spoil_the_sampler() -> None:
    from tinyllm.data.sampler import Sampler

    def windows(self: Sampler, samples: object) -> object:
        raise OSError("the disk went away")

    Sampler.windows = windows  # type: ignore[method-assign,assignment]


@pytest.mark.slow
def test_a_killed_run_leaves_its_directory_free_though_its_workers_live_on(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("trainer.max_steps=100000", "trainer.checkpoint_every=1", "dataloader.workers=2")
    elsewhere = Elsewhere("dataset=text", corpus, *SMALL, *options, f"run.dir={run}")
    wait_for(lambda: [step for step in logged(run, "step") if step > 2])
    workers = descendants(elsewhere.pid)
    elsewhere.signal(signal.SIGSTOP)
    assert elsewhere.stopped
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        elsewhere.signal(signal.SIGKILL)
        elsewhere.answer()
        assert train(f"resume={run}", "trainer.max_minutes=1e-5", "dataloader.workers=0") == 0
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_this_process_holds_its_directory(workers: int, corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("trainer.max_steps=100000", f"dataloader.workers={workers}")
    elsewhere = Elsewhere("dataset=text", corpus, *SMALL, *options, f"run.dir={run}")
    wait_for(lambda: logged(run, "step"))
    try:
        assert train("dataset=text", corpus, *SMALL, "resume=auto", f"run.dir={run}") == 2
    finally:
        elsewhere.signal(signal.SIGTERM)
        assert elsewhere.answer().code == 143
