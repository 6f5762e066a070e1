"""Training that starts before its data are prepared ends as on finished data, bit for bit, whatever is killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.data.conftest import text_corpus
from tests.support.copies import run
from tests.support.early_start import EARLY, prepare_slowly, use_small_shards
from tests.support.elsewhere import train_copy
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.data.preparation_process import MOST_KILLS, PreparationProcess
from tinyllm.data.prepare import prepare
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.training import data_arrival
from tinyllm.utils.fault_injection import VARIABLE

STEPS = 40
SHARED = (*SMALL, *EARLY, "dataset=text", "tokenizer=byte", f"trainer.max_steps={STEPS}", "trainer.batch_size=16")
SHARED += ("trainer.eval_every=20", "trainer.eval_train_tokens=200")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards; a run reads the first of them, and then all of it once more."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{i}: it was a bright cold day in April. " for i in range(220)))
    return file


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on finished data."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLM_CACHE", str(folder / "cache"))
        use_small_shards(patch)
        prepare(text_corpus(text), ByteTrainer())
        assert train(f"dataset.path={text}", *SHARED, f"run.dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def start(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Settings of a run whose data are not prepared."""
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    return f"dataset.path={text}", *SHARED


def assert_equal(run: Path, finished: Path) -> None:
    assert digest(run) == digest(finished)
    assert metrics(run) == metrics(finished)


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "tokens").glob(".tmp-*"))


@pytest.mark.slow
def test_a_run_that_catches_up_waits_and_says_so(
    start: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    gate = tmp_path / "gate"
    prepare_slowly(monkeypatch, gate=gate)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        assert leftovers(tmp_path)  # they are not finished
        waited.append(seconds)
        gate.touch()
        time.sleep(seconds)

    monkeypatch.setattr(data_arrival, "sleep", sleep)
    assert train(*start, f"run.dir={tmp_path / 'run'}") == 0
    out = capfd.readouterr().out
    assert waited
    assert out.count("waits for its data, which are still being prepared") >= 1
    assert "Training starts with the first " in out
    assert_equal(tmp_path / "run", finished)


@pytest.mark.slow
def test_kill_9_of_the_preparing_process(
    start: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every third shard; another one goes on each time."""
    started: list[int] = []
    begin = PreparationProcess._start

    def counted(self: PreparationProcess) -> None:
        begin(self)
        assert self.pid is not None
        started.append(self.pid)

    monkeypatch.setattr(PreparationProcess, "_start", counted)
    monkeypatch.setenv(VARIABLE, "kill@prepare:shard:3")
    prepare_slowly(monkeypatch)
    assert train(*start, f"run.dir={tmp_path / 'run'}") == 0
    assert len(set(started)) >= 3
    assert_equal(tmp_path / "run", finished)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_kill_9_of_the_trainer_and_so_of_both(
    start: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preparing process ends with the trainer, wherever it is; the next trainer starts one that goes on."""
    prepare_slowly(monkeypatch, gate=tmp_path / "never")
    arguments = (*start, "trainer.checkpoint_every=2", f"run.dir={tmp_path / 'run'}")
    killed = train_copy(*arguments, fault="kill@step=5")
    assert killed.code == -9, killed
    [work] = leftovers(tmp_path)
    before = (work / "journal.jsonl").read_bytes()
    prepare_slowly(monkeypatch)
    assert train(*arguments, "resume=auto") == 0
    assert before.count(b"\n") >= 4  # the tokenizer, validation and some shards were not made again
    assert_equal(tmp_path / "run", finished)
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.exhaustive)])
def test_several_ranks(
    strategy: str, start: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    """All of them wait for the same process, which only one of them starts, and catch up with it."""
    shared = [*start, f"strategy={strategy}", "trainer.batch_size=8"]
    prepare_slowly(monkeypatch, seconds=0.3)
    early = run(2, tmp_path / "early", *shared)
    assert not leftovers(tmp_path)
    late = run(2, tmp_path / "late", *shared)  # on the finished cache of the first
    assert_equal(early, late)


@pytest.mark.slow
def test_a_signal_while_waiting_saves(
    start: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    prepare_slowly(monkeypatch, gate=tmp_path / "gate")
    monkeypatch.setattr(data_arrival, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    arguments = (*start, f"run.dir={tmp_path / 'run'}")
    assert train(*arguments) == 128 + signal.SIGTERM
    assert "(SIGTERM)" in capfd.readouterr().out
    assert digest(tmp_path / "run") != digest(finished)
    monkeypatch.setattr(data_arrival, "sleep", time.sleep)
    (tmp_path / "gate").touch()
    assert train(*arguments, "resume=auto") == 0
    assert_equal(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "message"), [("kill", f"{MOST_KILLS} times in a row"), ("nospace", "a folder with more space")]
)
def test_a_preparation_that_cannot_succeed_is_one_line(
    action: str, message: str, start: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setenv(VARIABLE, f"{action}@prepare:tokenizer")
    assert train(*start, f"run.dir={tmp_path / 'run'}") == 2
    error = capfd.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert action == "kill" or not leftovers(tmp_path)
