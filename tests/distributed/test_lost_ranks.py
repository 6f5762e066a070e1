"""When a rank dies, fails, hangs or disagrees, the others end with one line that says which rank and why."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.copies import SHARED, run, start, train_ranks
from tests.support.elsewhere import Answer
from tests.support.training_runs import digest, logged, metrics, write_corpus
from tinyllm.runs.checkpoint import find
from tinyllm.training.trainer import Trainer

OPTIONS = ("trainer.checkpoint_every=2", "trainer.max_steps=8", "trainer.eval_every=4")
TIMEOUT = "distributed.timeout_s=3"


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks."""
    return run(2, tmp_path_factory.mktemp("whole") / "run", *SHARED, corpus, *OPTIONS)


def goes_on(place: Path, whole: Path) -> None:
    """Resumed, the run equals the undisturbed one."""
    assert [answer.code for answer in train_ranks(2, f"resume={place}")] == [0, 0]
    assert digest(place) == digest(whole)
    assert metrics(place) == metrics(whole)


def errors(answers: list[Answer]) -> list[str]:
    """The single line that each rank writes to standard error."""
    assert all(len(answer.err.splitlines()) <= 1 for answer in answers), answers
    return [answer.err.strip() for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["kill@step=5,rank=1", "kill@save:mid_write:2,rank=0", "kill@save:after_rename:2,rank=0"]
)
def test_a_rank_is_killed(fault: str, whole: Path, corpus: str, tmp_path: Path) -> None:
    lost = int(fault[-1])
    answers = train_ranks(2, *SHARED, corpus, *OPTIONS, f"run.dir={tmp_path / 'run'}", fault=fault)
    assert answers[lost].code == -signal.SIGKILL
    other = answers[1 - lost]
    assert other.code == 2
    assert other.err.startswith(f"error: a rank was lost (rank {1 - lost}, step ")
    assert re.search(rf"no heartbeat from rank {lost} \(last seen at step \d\); ", other.err)
    assert "the last checkpoint is intact, resume from it" in other.err
    goes_on(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise@step=5,rank=1", "memory@step=5,rank=0"])
def test_a_rank_fails(fault: str, corpus: str, tmp_path: Path) -> None:
    answers = train_ranks(2, *SHARED, corpus, *OPTIONS, f"run.dir={tmp_path / 'run'}", fault=fault)
    bad = int(fault[-1])
    told = errors(answers)
    said = {"raise": "RuntimeError: ", "memory": "not enough memory (step 6: "}[fault.partition("@")[0]]
    assert told[bad].startswith(f"error: {said}")
    assert f"TINYLLM_FAULT={fault}" in told[bad] and f"(rank {bad}, step 5)" in told[bad]
    assert told[1 - bad].startswith(f"error: a rank was lost (rank {1 - bad}, step 5): rank {bad} failed: {said}")
    assert [answer.code for answer in answers] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_rank_is_stopped(world_size: int, corpus: str, tmp_path: Path) -> None:
    """All others name it, and not each other."""
    begun = time.monotonic()
    ranks = start(world_size, *SHARED, corpus, TIMEOUT, f"run.dir={tmp_path / 'run'}", fault="stop@step=5,rank=1")
    assert ranks[1].stopped
    answers = [rank.answer() for rank in ranks if rank is not ranks[1]]
    assert time.monotonic() - begun < 60
    ranks[1].signal(signal.SIGKILL, signal.SIGCONT)
    ranks[1].answer()
    for line in errors(answers):
        assert re.search(r"step 5\): no heartbeat from rank 1 \(last seen at step \d\); ", line)


@pytest.mark.slow
def test_a_rank_hangs(corpus: str, tmp_path: Path) -> None:
    """Its heartbeat continues while its program hangs."""

    def first() -> None:
        train_step = Trainer.train_step

        def hang(trainer: Trainer, *rest: object) -> dict[str, float]:
            while trainer.strategy.rank == 1 and trainer.state.step == 5:
                time.sleep(0.1)
            return train_step(trainer, *rest)  # type: ignore[arg-type]

        Trainer.train_step = hang  # type: ignore[method-assign, assignment]

    ranks = start(2, *SHARED, corpus, TIMEOUT, f"run.dir={tmp_path / 'run'}", first=first)
    answer = ranks[0].answer()
    ranks[1].signal(signal.SIGKILL)
    ranks[1].answer()
    assert "(rank 0, step 5): rank 1 is alive but does not answer, at step " in answer.err
    assert answer.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGUSR1)])
def test_a_signal_to_one_rank_stops_all(
    rank: int, number: signal.Signals, whole: Path, corpus: str, tmp_path: Path
) -> None:
    name = number.name.removeprefix("SIG").lower()
    fault = f"{name}@step=5,rank={rank}"
    answers = train_ranks(2, *SHARED, corpus, *OPTIONS, f"run.dir={tmp_path / 'run'}", fault=fault)
    assert [answer.code for answer in answers] == [128 + number] * 2
    assert errors(answers) == ["", ""]
    assert find(tmp_path / "run").step == 6
    goes_on(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_interrupts_the_evaluation_of_all(
    strategy: str, whole: Path, corpus: str, tmp_path: Path
) -> None:
    """All interrupt it together, and repeat it in the resumed run."""
    place, shared = tmp_path / "run", (*SHARED, corpus, *OPTIONS)
    answers = train_ranks(2, *shared, f"strategy={strategy}", f"run.dir={place}", fault="term@evaluate,rank=1")
    assert [answer.code for answer in answers] == [143, 143], answers
    assert find(place).step == 4 and not logged(place, "val/loss")
    if strategy == "ddp":
        goes_on(place, whole)
    else:
        answers = train_ranks(2, f"resume={place}")
        assert [answer.code for answer in answers] == [0, 0], answers
        assert len(logged(place, "val/loss")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ruined_weights_are_not_saved_by_any_rank(strategy: str, corpus: str, tmp_path: Path) -> None:
    place, shared = tmp_path / "run", (*SHARED, corpus, *OPTIONS, f"strategy={strategy}")
    patience = "trainer.nonfinite.patience=99"
    assert [one.code for one in train_ranks(2, *shared, "trainer.stop_after_steps=6", f"run.dir={place}")] == [0, 0]
    for ruin in ("optimizer.lr=1e30", "optimizer.lr=1e38"):
        answers = train_ranks(2, f"resume={place}", ruin, patience)
        assert [answer.code for answer in answers] == [2, 2], answers
        assert find(place).step == 6


@pytest.mark.slow
def test_a_nan_loss_on_one_rank(corpus: str, tmp_path: Path) -> None:
    """All ranks skip the step and continue with equal weights; with action=stop, all end."""
    place, fault = tmp_path / "run", "nan@step=3,rank=1"
    options = (*SHARED, corpus, "trainer.max_steps=5", "trainer.checkpoint_every=1", "checkpoint.keep=9")
    answers = train_ranks(2, *options, f"run.dir={place}", "trainer.stop_after_steps=4", fault=fault)
    assert [answer.code for answer in answers] == [0, 0]
    said = "step 4: loss nan, gradient norm nan (rank 1, sequences 24 to 31): step skipped, weights untouched"
    assert said in answers[0].out
    before, after = (find(place / "checkpoints" / f"step-00000{step}").weights() for step in (3, 4))
    assert all(before[name].equal(after[name]) for name in before)
    answers = train_ranks(2, *options, f"run.dir={tmp_path / 'stop'}", "trainer.nonfinite.action=stop", fault=fault)
    assert [answer.code for answer in answers] == [2, 2]
    for rank, line in enumerate(errors(answers)):
        what = "step 4: loss nan, gradient norm nan (rank 1, sequences 24 to 31)"
        assert line.startswith(f"error: loss or gradient norm not finite at {what}")
        assert f"rank {rank}" in line


@pytest.mark.slow
def test_ranks_with_different_settings_are_refused(corpus: str, tmp_path: Path) -> None:
    options = (*SHARED, corpus, f"run.dir={tmp_path / 'run'}")
    answers = train_ranks(2, *options, last_rank=("optimizer.lr=1e-5",))
    assert [answer.code for answer in answers] == [2, 2]
    for line in errors(answers):
        assert line.startswith("error: rank 1 differs from rank 0 in the configuration (rank 1: ")
        assert "start all ranks with the same command, code and files" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_with_different_data_are_refused(tmp_path: Path) -> None:
    def first() -> None:
        folder = tmp_path / os.environ["RANK"]
        folder.mkdir()
        os.chdir(folder)
        write_corpus(folder / "words.txt", seed=int(os.environ["RANK"]))

    answers = train_ranks(2, *SHARED, "dataset.path=words.txt", f"run.dir={tmp_path / 'run'}", first=first)
    assert all(line.startswith("error: rank 1 differs from rank 0 in the train data") for line in errors(answers))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_share_one_run_directory_and_one_token_cache(tmp_path: Path) -> None:
    """With unprepared data, no directory given, and rank 0 late."""
    place, cache = tmp_path / "place", tmp_path / "cache"
    place.mkdir()
    options = (*SHARED, f"dataset.path={write_corpus(tmp_path / 'words.txt', n_words=20_000)}", "trainer.max_steps=2")

    def first() -> None:
        os.environ["TINYLLM_CACHE"] = str(cache)
        os.chdir(place)
        time.sleep(1.5 * (os.environ["RANK"] == "0"))

    answers = train_ranks(2, *options, first=first)
    assert [answer.code for answer in answers] == [0, 0], answers
    assert len(list(place.glob("outputs/*/*"))) == 1
    built = {path.name: path.read_bytes() for path in cache.glob("tokens/*/*.bin")}
    assert run(1, tmp_path / "alone", *options)
    own = Path(os.environ["TINYLLM_CACHE"])
    key = next(cache.glob("tokens/*/train.bin")).parent.name
    assert built == {path.name: path.read_bytes() for path in (own / "tokens" / key).glob("*.bin")}


@pytest.mark.slow
def test_a_rank_that_never_connects(corpus: str, tmp_path: Path) -> None:
    def first() -> None:
        if os.environ["RANK"] == "1":
            os._exit(0)

    answers = train_ranks(2, *SHARED, corpus, TIMEOUT, f"run.dir={tmp_path / 'run'}", first=first)
    assert answers[0].code == 2
    told = errors(answers)[0]
    assert told.startswith("error: the ranks could not connect (rank 0): ") and "distributed.timeout_s=3" in told
    assert not (tmp_path / "run").exists()
