"""kill -9 at any point of saving: the newest complete checkpoint is found, and the run resumes from it."""

import json
from pathlib import Path

import pytest

from tests.support.elsewhere import train_copy
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.runs.checkpoint import find, steps_in
from tinyllm.utils.fault_injection import POINTS

NEWEST = {
    "save:before_write": 4, "save:mid_write": 4, "save:after_sync": 4,
    "save:after_rename": 6, "save:between_hints": 6, "save:mid_prune": 6,
}  # fmt: skip
"""Point at which the save of step 6 is killed -> the newest complete checkpoint."""

EVERY_DAY = (("save:mid_write", False),)


@pytest.fixture(scope="module")
def shared(corpus: str) -> list[str]:
    options = ("trainer.max_steps=9", "trainer.checkpoint_every=2", "trainer.eval_every=3", "optimizer.lr=1e-2")
    return ["dataset=text", corpus, *SMALL, *options]


@pytest.fixture(scope="module")
def whole(shared: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(*shared, f"run.dir={path}") == 0
    return path


def checkpoints(run: Path) -> list[object]:
    """The checkpoints, the content of the hints, and other files beside them."""
    return [(path.name, path.is_file() and path.read_text()) for path in sorted((run / "checkpoints").iterdir())]


def test_every_point_of_saving_is_tried() -> None:
    assert {point for point in POINTS if point.startswith("save:")} == NEWEST.keys()


@pytest.mark.parametrize(
    ("point", "asynchronous"),
    [
        pytest.param(point, asynchronous, marks=[] if (point, asynchronous) in EVERY_DAY else [pytest.mark.slow])
        for point in NEWEST
        for asynchronous in (False, True)
    ],
)
def test_killed_at(point: str, asynchronous: bool, shared: list[str], whole: Path, tmp_path: Path) -> None:
    """The save of step 6 is the fourth: step 3 is saved as the best besides 2 and 4."""
    run = tmp_path / "killed"
    mode = f"checkpoint.asynchronous={str(asynchronous).lower()}"
    occasion = 2 if point == "save:mid_prune" else 4  # the first two saves have nothing to remove
    answer = train_copy(*shared, mode, f"run.dir={run}", fault=f"kill@{point}:{occasion}")
    assert answer.code == -9, answer
    assert find(run, tell=lambda text: pytest.fail(text)).step == NEWEST[point]
    assert find(run, prefer="best", tell=lambda text: pytest.fail(text)).step in (3, 6)
    assert train(f"resume={run}") == 0
    assert digest(run) == digest(whole) and metrics(run) == metrics(whole)
    assert checkpoints(run) == checkpoints(whole)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("asynchronous", [False, True])
def test_kills_at_random_moments(asynchronous: bool, corpus: str, call: Call) -> None:
    """12 MB of weights and twice that of moments, so that much of the time goes into saving."""
    kills, every = 30, 2
    size = ("model.d_model=256", "model.n_layers=4", "model.n_heads=4", "model.d_ff=1024", "model.max_seq_len=16")
    answer = call(
        "verify_resume", "dataset=text", corpus, *size, "optimizer=adamw", "trainer.batch_size=1",
        "trainer.precision=fp32",
        f"kills={kills}", f"trainer.max_steps={2 * kills}", f"trainer.checkpoint_every={every}", "trainer.eval_every=0",
        "kill_seed=3", f"checkpoint.asynchronous={str(asynchronous).lower()}", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer
    told = json.loads(answer.out)
    assert told["equal"] and len(told["kills"]) == kills
    assert sum(kill["saving"] for kill in told["kills"]) >= kills // 6
    # a save that goes on in the background is whole only some steps later, at the next one at the latest
    assert max(kill["again"] for kill in told["kills"]) <= (2 * every if asynchronous else every)


@pytest.mark.slow
def test_leftovers_of_a_kill_are_removed_only_by_the_owner_of_the_run(
    shared: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "killed"
    assert train_copy(*shared, f"run.dir={run}", fault="kill@save:mid_write:2").code == -9
    left = [path.name for path in (run / "checkpoints").glob(".tmp-*")]
    assert len(left) == 1 and set(steps_in(run / "checkpoints")) == {2}
    assert train(f"resume={run}", "model.d_model=64") == 2  # refused before the run is anybody's
    assert [path.name for path in (run / "checkpoints").glob(".tmp-*")] == left
    assert train(f"resume={run}") == 0
    assert checkpoints(run) == checkpoints(whole)
