"""A run resumed with a different number of ranks or a different strategy equals an uninterrupted run."""

import json
from pathlib import Path

import pytest

from tests.support.copies import SHARED, STEPS, largest_difference, run, tensors, train_ranks
from tests.support.fixtures import Call
from tests.support.training_runs import digest, logged, metrics, train
from tinyllm.runs.checkpoint import find

EMA = ("ema.enabled=true", "ema.decay=0.9", "ema.update_every=2", "ema.start_step=3")


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one rank, with eight sequences in two micro-steps."""
    place = tmp_path_factory.mktemp("whole") / "run"
    return run(1, place, *SHARED, corpus, *EMA, "trainer.grad_accum_steps=2")


def begin(world_size: int, place: Path, corpus: str, strategy: str) -> Path:
    """The first five steps, of eight sequences each."""
    more = (f"trainer.batch_size={8 // world_size}", f"strategy={strategy}", "trainer.stop_after_steps=5")
    return run(world_size, place, *SHARED, corpus, *EMA, *more)


def go_on(world_size: int, place: Path, *more: str) -> list[str]:
    """Resume the run; returns its notes about ranks and dropout."""
    if world_size == 1:
        assert train(f"resume={place}", "strategy=auto", *more) == 0
        return []
    answers = train_ranks(world_size, f"resume={place}", *more)
    assert [answer.code for answer in answers] == [0] * world_size, answers
    return [
        line
        for line in answers[0].out.splitlines()
        if line.startswith("note:") and ("rank" in line or "dropout" in line)
    ]


def losses(place: Path) -> list[float]:
    return logged(place, "train/loss") + logged(place, "val/loss")


def as_if_nothing_had_been(place: Path, whole: Path) -> None:
    assert logged(place, "step") == list(range(1, STEPS + 1))
    assert losses(place) == pytest.approx(losses(whole), abs=1e-5)
    assert largest_difference(tensors(place), tensors(whole)) < 1e-5


@pytest.mark.slow
def test_two_to_one_to_four_and_back_to_two(whole: Path, corpus: str, tmp_path: Path) -> None:
    place = begin(2, tmp_path / "run", corpus, "ddp")
    go_on(1, place, "trainer.stop_after_steps=8")
    assert find(place).manifest["world_size"] == 1
    notes = go_on(4, place, "strategy=ddp", "trainer.stop_after_steps=12")
    assert "note: 4 rank(s) instead of 1: 2 sequences each in 1 micro-step(s), the same batch" in notes
    go_on(2, place, "strategy=ddp")
    as_if_nothing_had_been(place, whole)


@pytest.mark.slow
def test_switching_between_fsdp_ddp_and_one_process(whole: Path, corpus: str, tmp_path: Path) -> None:
    place = begin(2, tmp_path / "run", corpus, "fsdp")
    go_on(4, place, "trainer.stop_after_steps=9")
    go_on(2, place, "strategy=ddp", "trainer.stop_after_steps=13")
    go_on(1, place, "trainer.stop_after_steps=16")
    go_on(2, place, "strategy=fsdp")
    as_if_nothing_had_been(place, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("strategy=ddp", "moe=aux_free", "model.block.moe.gamma=0.01", "dataloader.workers=1"),
        ("strategy=fsdp", "optimizer=muon", "trainer.precision=bf16", "trainer.checkpoint_every=2"),
    ],
    ids=["whole", "in parts"],
)
def test_a_resume_on_the_same_ranks_is_bitwise_equal(options: tuple[str, ...], corpus: str, tmp_path: Path) -> None:
    """Including dropout, whose random streams differ by rank."""
    options = (*EMA, *options, "model.dropout=0.1", "model.attn_dropout=0.1", "trainer.max_steps=8")
    one = run(2, tmp_path / "whole", *SHARED, corpus, *options)
    run(2, tmp_path / "parts", *SHARED, corpus, *options, "trainer.stop_after_steps=3")
    go_on(2, tmp_path / "parts", "trainer.stop_after_steps=6")
    assert go_on(2, tmp_path / "parts") == []
    assert digest(tmp_path / "parts") == digest(one)
    assert metrics(tmp_path / "parts") == metrics(one)


@pytest.fixture(scope="module")
def in_parts(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout whose last checkpoint was written by two ranks, of a model that can be exported."""
    place = tmp_path_factory.mktemp("in_parts") / "run"
    options = ("strategy=fsdp", "ffn=swiglu", "trainer.eval_tokens=null", "model.dropout=0.1", "trainer.max_steps=10")
    run(2, place, *SHARED, corpus, *options)
    assert len(list(find(place).path.glob("model-*.safetensors"))) == 2
    return place


@pytest.mark.slow
def test_a_sharded_checkpoint_is_read_by_programs_of_one_process(in_parts: Path, call: Call) -> None:
    answer = call("evaluate", f"run={in_parts}", "--json")
    assert json.loads(answer.out)["val/loss"] == pytest.approx(logged(in_parts, "val/loss")[-1], abs=1e-6)
    assert call("generate", f"run={in_parts}", "prompt=the ", "max_new_tokens=5").out.startswith("the ")
    assert call("export", f"run={in_parts}", "out=model").code == 0
    assert call("evaluate", "run=model", f"dataset.path={in_parts.parent}").code == 2


@pytest.mark.slow
def test_notes_on_dropout_and_on_a_given_batch_size(in_parts: Path) -> None:
    notes = go_on(4, in_parts, "trainer.max_steps=11")
    assert "note: dropout draws from different random streams than with the previous number of ranks" in notes
    assert go_on(2, in_parts, "trainer.batch_size=3", "trainer.max_steps=12") == []
    assert [record["tokens"] for record in metrics(in_parts)[-2:]] == [11 * 8 * 16, (11 * 8 + 6) * 16]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run(1, tmp_path / "run", *SHARED, corpus, "trainer.stop_after_steps=1")
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    capsys.readouterr()
    assert train(f"resume={place}") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: the batch does not divide over the ranks (WORLD_SIZE=3): it has 4 sequences")
    assert len(shown.splitlines()) == 1
