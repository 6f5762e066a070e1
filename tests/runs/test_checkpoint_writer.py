"""Writing checkpoints in the background and from several ranks, under changes, failures and kills."""

import copy
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.saves import TEXTS, begin, check, commit, savers
from tests.support.training_runs import SMALL, digest, metrics, train, train_elsewhere
from tinyllm.errors import UserError
from tinyllm.optim.ema import EMA
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs import checkpoint_writer as saver_module
from tinyllm.utils.fault_injection import POINTS


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Blocks writing until it is set."""
    event, write = threading.Event(), saver_module.write_part

    def late(*args: Any, **keywords: Any) -> Any:
        assert event.wait(60)
        return write(*args, **keywords)

    monkeypatch.setattr(saver_module, "write_part", late)
    yield event
    event.set()


def test_changes_after_begin_are_not_saved(tmp_path: Path, gate: threading.Event) -> None:
    """Weights, moments, the step counter (a 0-d tensor), the average, lists and dictionaries."""
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters())
    average = EMA(model, decay=0.5, update_every=1, start_step=0)

    def train_step(step: int) -> None:
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
        average.after_step(step)

    def everything() -> tuple[dict[str, Tensor], dict[str, Any]]:
        lists = {"rng": [torch.get_rng_state(), [1, 2, (3, 4)]], "window": window, "view": torch.arange(9.0)[2:4]}
        moments = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
        return model.state_dict(), {"optimizer": moments, "average": {"shadow": average.shadow}, **lists}

    window = {"loss": [1.0]}
    saver = savers(tmp_path / "checkpoints")[0]
    expected = []
    for step in (1, 2):
        train_step(step)
        weights, state = everything()
        expected.append(copy.deepcopy((dict(weights), state)))
        saver.begin(step=step, weights=weights, state=state, best=False)
        assert not saver.written()
        train_step(step + 1)
        window["loss"].append(2.0)
        state["rng"][0].zero_(), state["rng"][1].append(5), state["view"].zero_()
        gate.set()
        saver.commit()
        gate.clear()
    for step, (weights, state) in enumerate(expected, start=1):
        found = checkpoints.verify(tmp_path / "checkpoints" / checkpoints.name_of(step))
        torch.testing.assert_close(found.weights(), weights, rtol=0, atol=0)
        assert found.state()["window"] == state["window"] and found.state()["rng"][1] == state["rng"][1]
        for name in ("optimizer", "average", "view"):
            torch.testing.assert_close(found.state()[name], state[name], rtol=0, atol=0)


def test_the_snapshot_reuses_memory_if_shapes_are_unchanged(tmp_path: Path) -> None:
    saver = savers(tmp_path / "checkpoints")[0]
    assert saver.snapshot is not None
    value = {"same": torch.ones(3), "other": torch.ones(2), "alone": [torch.tensor(1.0)]}
    first = saver.snapshot.take(value)
    second = saver.snapshot.take(value | {"other": torch.ones(5), "new": torch.ones(1)})
    assert second["same"].data_ptr() == first["same"].data_ptr() != value["same"].data_ptr()
    assert second["alone"][0].data_ptr() == first["alone"][0].data_ptr()
    assert second["other"].tolist() == [1.0] * 5 and set(second) == {"same", "other", "alone", "new"}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("writers", [1, 3])
def test_saves_in_a_row(writers: int, asynchronous: bool, tmp_path: Path) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=writers, asynchronous=asynchronous)
    for step in (1, 2, 3, 4):
        begin(ranks, step, best=step == 1)
        path = commit(ranks)
        assert path.name == checkpoints.name_of(step)
        check(tmp_path, step=step, writers=writers)
    names = {"step-000001", "step-000003", "step-000004", "best", "last"}
    assert {path.name for path in path.parent.iterdir()} == names
    files = {"model.safetensors", "state.pt"}
    if writers > 1:
        files = {
            f"{name}-{n:05d}-of-00003.{end}"
            for name, end in (("model", "safetensors"), ("state", "pt"))
            for n in (1, 2, 3)
        }
        files |= {"model.safetensors.index.json"}
    assert {file.name for file in path.iterdir()} == files | set(TEXTS) | {"manifest.json"}
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {(path / "config.yaml").stat().st_mode & 0o777}
    for saver in ranks:
        saver.close()


@pytest.mark.parametrize("writers", [1, 2])
def test_nothing_is_published_or_pruned_before_commit(writers: int, tmp_path: Path) -> None:
    """The loop drops a save whose weights turn out to be ruined while it is being written."""
    ranks = savers(tmp_path / "checkpoints", writers=writers, asynchronous=True)
    for step in (1, 2):
        begin(ranks, step)
        commit(ranks)
    begin(ranks, 3)
    while not all(saver.written() for saver in ranks):
        time.sleep(0.001)
    for saver in ranks:
        saver.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000001", "step-000002", "last"}


def test_a_save_must_be_committed_before_the_next_and_close_drops_it(tmp_path: Path) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=2)
    begin(ranks, 1)
    with pytest.raises(RuntimeError, match="not committed"):
        begin(ranks, 2)
    for saver in ranks:
        saver.close()
    assert not list((tmp_path / "checkpoints").iterdir())


@contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """A full disk, imitated by the file size limit of the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("writers", [1, 2])
@pytest.mark.parametrize("call", ["wait", "commit", "begin"])
def test_a_full_disk_is_reported_by_the_next_call(call: str, writers: int, asynchronous: bool, tmp_path: Path) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=writers, asynchronous=asynchronous)
    begin(ranks, 1)
    commit(ranks)
    calls = {"wait": ranks[0].wait, "commit": ranks[0].commit, "begin": lambda: begin(ranks, 3)}
    with files_no_larger_than(100_000):
        begin(ranks, 2, size=100_000)
        while not all(saver.written() for saver in ranks):
            time.sleep(0.001)
        with pytest.raises(UserError, match=r"^no space left while writing \(.*step-000002\).*are intact"):
            calls[call]()
        for saver in ranks:
            saver.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000001", "last"}
    check(tmp_path, step=1, writers=writers)
    begin(ranks, 2)
    commit(ranks)
    check(tmp_path, step=2, writers=writers)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), r"^rank 1: no space left while writing \(.*step-000002\)"),
        (ValueError("odd"), r"^rank 1 did not write its part of the checkpoint \(.*\): ValueError\('odd'\)"),
        (None, r"^rank 1 did not write its part of the checkpoint"),
    ],
)
def test_rank_0_reports_why_another_rank_failed_to_write(
    error: Exception | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=2)
    begin(ranks, 1)
    commit(ranks)
    write = saver_module.write_part

    def failing(*args: Any, writer: int, **keywords: Any) -> Any:
        if writer == 1 and error is not None:
            raise error
        return write(*args, writer=writer, **keywords)

    monkeypatch.setattr(saver_module, "write_part", failing)
    begin(ranks if error else ranks[:1], 2)
    while not all(saver.written() for saver in ranks):
        time.sleep(0.001)
    with pytest.raises(UserError, match=message):
        ranks[0].commit()
    if error:
        with pytest.raises(type(error) if isinstance(error, ValueError) else UserError):
            ranks[1].wait()
    check(tmp_path, step=1, writers=2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000001", "last"}


NEWEST_AFTER_KILL = {
    "save:before_write": 2,
    "save:mid_write": 2,
    "save:after_sync": 2,
    "save:after_rename": 3,
    "save:between_hints": 3,
    "save:mid_prune": 3,
}
KILLED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from tests.support.saves import begin, check, checkpoints, commit, savers
from tests.runs.test_checkpoint_writer import NEWEST_AFTER_KILL
torch.set_num_threads(1)
root = Path(sys.argv[2])
# The children are forked from a process without threads that has imported everything.
for point, newest in NEWEST_AFTER_KILL.items():
    directory = root / point / "checkpoints"
    if not (child := os.fork()):
        ranks = savers(directory, writers=2)
        for step in (1, 2, 3):
            if step == 3:
                os.environ["TINYLLM_FAULT"] = f"kill@{point}"
            begin(ranks, step)
            commit(ranks)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, point
    check(directory.parent, step=newest, writers=2)
    assert set(checkpoints.steps_in(directory)) <= {1, 2, 3}
    checkpoints.clean(directory)
    assert not list(directory.glob(".tmp*"))
# Fifteen kills of a child that keeps saving checkpoints of 4 MB.
directory, newest = root / "storm" / "checkpoints", 0
for attempt in range(15):
    writers, asynchronous = 1 + attempt % 2, attempt % 3 > 0
    checkpoints.clean(directory)  # as every start does
    if not (child := os.fork()):
        ranks = savers(directory, writers=writers, asynchronous=asynchronous)
        step = newest
        while True:
            step += 1
            begin(ranks, step, size=250_000 // writers)
            commit(ranks)
    while max(checkpoints.steps_in(directory), default=0) == newest:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(0.005 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = checkpoints.find(directory.parent, tell=sys.exit)
    assert found.step > newest
    newest = found.step
    check(directory.parent, step=newest, writers=writers)
checkpoints.clean(directory)
assert not list(directory.glob(".tmp*"))
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_complete_newest_checkpoint(tmp_path: Path) -> None:
    assert {point for point in POINTS if point.startswith("save:")} == NEWEST_AFTER_KILL.keys()
    subprocess.run([sys.executable, "-c", KILLED, str(Path.cwd()), str(tmp_path)], check=True)


@settings(max_examples=12, deadline=None)
@given(
    keep=st.integers(1, 3),
    writers=st.integers(1, 2),
    saves=st.lists(
        st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6, unique_by=lambda save: save[0]
    ),
)
def test_the_newest_and_the_best_stay_and_abandoned_steps_go(
    tmp_path_factory: pytest.TempPathFactory, keep: int, writers: int, saves: list[tuple[int, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("rotation") / "checkpoints"
    ranks = savers(directory, writers=writers, asynchronous=False, keep=keep)
    begin(ranks, 5000)  # an abandoned step: the run was resumed from an earlier one
    commit(ranks)
    best, done = None, []
    for step, is_best in sorted(saves):
        begin(ranks, step, best=is_best)
        commit(ranks)
        done.append(step)
        best = step if is_best else best
        assert set(checkpoints.steps_in(directory)) == {*done[-keep:], *([best] if best else [])}
        check(directory.parent, step=step, writers=writers)
        named = checkpoints.find(directory, prefer="best")
        assert named.step == (best or step)
    assert not list(directory.glob(".*"))


@pytest.mark.slow
def test_a_signal_while_a_checkpoint_is_written_in_the_background(corpus: str, tmp_path: Path) -> None:
    """The program exits after the write has finished, and the resumed run is the same."""
    options = ("trainer.max_steps=20", "trainer.checkpoint_every=4", "checkpoint.asynchronous=true", "ema.enabled=true")
    shared = ["dataset=text", corpus, *SMALL, *options]
    environment = os.environ | {"TINYLLM_FAULT": "term@save:mid_write:2"}
    process = train_elsewhere(*shared, f"run.dir={tmp_path / 'parts'}", env=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, (out, err)
    newest = checkpoints.find(tmp_path / "parts", tell=lambda text: pytest.fail(text)).step
    assert 8 <= newest < 20
    assert not list((tmp_path / "parts" / "checkpoints").glob(".tmp*"))
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}", "checkpoint.asynchronous=false") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
