"""A run that is stopped at any point, by a limit or a signal, resumes without a difference."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.elsewhere import Elsewhere, train_copy, wait_for
from tests.support.training_runs import SMALL, digest, logged, metrics, train

STEPS_PER_EPOCH = 8
STOPS = (1, 3, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 12, 19)
"""The first step, the end of warm-up, around the end of an epoch, within the second, the last but one."""


def whole_equals_parts(place: Path) -> bool:
    return digest(place / "whole") == digest(place / "parts") and metrics(place / "whole") == metrics(place / "parts")


@pytest.fixture(scope="module")
def shared(corpus: str) -> list[str]:
    """Twenty steps, eight of which make an epoch, with dropout, warm-up and averaged weights."""
    return [
        "dataset=text", corpus, *SMALL, "trainer.max_steps=20", "schedule.warmup_steps=3", "model.dropout=0.1",
        "ema.enabled=true", "ema.start_step=2", "trainer.batch_size=40", "trainer.grad_accum_steps=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_stops_at_epoch_and_warm_up_boundaries_lose_no_data(shared: list[str], tmp_path: Path) -> None:
    """Including a resume of a resume of a resume, each at another position in the data."""
    from tinyllm.runs.checkpoint import find

    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    for stop in STOPS:
        given = (f"trainer.stop_after_steps={stop}", "resume=auto", f"run.dir={tmp_path / 'parts'}")
        assert train(*shared, *given) == 0
        assert find(tmp_path / "parts").step == stop
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert whole_equals_parts(tmp_path)
    epochs = logged(tmp_path / "whole", "tokens")[-1] / 5043
    assert 2 < epochs < 20 / STEPS_PER_EPOCH + 0.1


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("evaluate", marks=pytest.mark.slow),
        pytest.param("save:mid_write", marks=pytest.mark.slow),
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("save:after_rename", "step:5")),
    ],
)
def test_a_signal_outside_of_a_step_is_handled(place: str, corpus: str, tmp_path: Path) -> None:
    options = ("trainer.eval_every=4", "trainer.checkpoint_every=4", "trainer.max_steps=10")
    shared = ["dataset=text", corpus, *SMALL, *options]
    answer = train_copy(*shared, f"run.dir={tmp_path / 'parts'}", fault=f"term@{place}")
    assert answer.code == 143, answer
    assert f"resume={tmp_path / 'parts'}" in answer.out
    done = logged(tmp_path / "parts", "step")[-1]
    assert 4 <= done <= 5
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert whole_equals_parts(tmp_path)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_loses_only_the_steps_since_the_checkpoint(
    corpus: str, tmp_path: Path
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=10", "trainer.checkpoint_every=2"]
    run = Elsewhere(*shared, f"run.dir={tmp_path / 'parts'}", fault="stop@step=5")
    assert run.stopped
    run.signal(signal.SIGINT, signal.SIGTERM, signal.SIGCONT)
    assert run.answer().code in (130, 143)
    assert sorted(path.name for path in (tmp_path / "parts" / "checkpoints").glob("step-*"))[-1] == "step-000004"
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert whole_equals_parts(tmp_path)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_reaches_workers_too_and_is_no_fault(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=200", "dataloader.workers=2"]
    run = Elsewhere(*shared, f"run.dir={tmp_path / 'parts'}")
    wait_for(lambda: logged(tmp_path / "parts", "step"))
    os.killpg(run.pid, signal.SIGTERM)
    answer = run.answer()
    assert answer.code == 143, answer
    assert 0 < logged(tmp_path / "parts", "step")[-1] < 200
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}", "dataloader.workers=0") == 0
    assert whole_equals_parts(tmp_path)
