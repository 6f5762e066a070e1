"""Whole runs on preferences: from the weights of another run, in parts, on ranks, and evaluated."""

import math
from pathlib import Path

import pytest

from tests.support.copies import run as run_ranks
from tests.support.preferences import write_preferences
from tests.support.training_runs import SMALL, digest, logged, metrics, train, write_corpus
from tinyllm import compose
from tinyllm.errors import UserError
from tinyllm.programs.evaluate import evaluate_run

LOGGED = ("model.max_seq_len=32", "trainer.batch_size=4", "trainer.max_steps=6")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run on preferences from the weights of a trained model."""
    folder = tmp_path_factory.mktemp("base")
    text, run = write_corpus(folder / "text.txt", n_words=300), folder / "run"
    of_text = (f"dataset.path={text}", "dataset=text", "tokenizer=byte", "trainer.max_steps=1", f"run.dir={run}")
    assert train(*SMALL, *LOGGED, *of_text) == 0
    pairs = write_preferences(folder / "pairs.jsonl")
    return [*SMALL, *LOGGED, "dataset=preferences", f"dataset.path={pairs}", f"init_from={run}"]


def test_dpo_starts_at_ln_2_and_learns_and_evaluates(base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluated = ("trainer.eval_every=3", "optimizer.lr=1e-2")
    assert train(*base, "objective=dpo", *evaluated, f"run.dir={run}") == 0
    records = metrics(run)
    assert records[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert records[0]["pref/drift"] == records[0]["pref/margin"] == 0 and records[0]["pref/accuracy"] == 0.5
    losses = logged(run, "val/loss")
    assert losses[-1] < losses[0] < math.log(2) and records[-1]["val/pref/accuracy"] > 0.8
    again = evaluate_run(compose(f"run={run}", "checkpoint=last", "precision=fp32", program="evaluate"), str(run))
    assert {key: again[key] for key in again if key.startswith("val/")} == {
        key: pytest.approx(value, rel=1e-6) for key, value in records[-1].items() if key.startswith("val/")
    }
    with pytest.raises(UserError, match="the run has no reference for these pairs"):
        other = write_preferences(tmp_path / "other.jsonl", seed=1)
        given = ("dataset=preferences", f"dataset.path={other}")
        evaluate_run(compose(f"run={run}", *given, program="evaluate"), str(run))


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(base: list[str], tmp_path: Path) -> None:
    """The reference is in the checkpoint: the weights that the run started from may be gone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*base, "objective=dpo", f"run.dir={whole}") == 0
    assert train(*base, "objective=dpo", f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)


@pytest.mark.slow
def test_adapters_start_at_the_reference_and_resume_bitwise(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start adapters add nothing, so the base is its own reference; it is merged for the evaluation."""
    settings = [*base, "objective=dpo", "lora=lora", "optimizer.lr=1e-2", "trainer.eval_every=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*settings, f"run.dir={whole}") == 0
    records = metrics(whole)
    assert records[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-7) and records[0]["pref/drift"] == 0
    assert records[-1]["val/loss"] < math.log(2)
    assert train(*settings, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(whole) and metrics(parts) == records
    again = evaluate_run(compose(f"run={whole}", "checkpoint=last", "precision=fp32", program="evaluate"), str(whole))
    assert again["val/loss"] == pytest.approx(records[-1]["val/loss"], rel=1e-5)
    assert train(*settings, "lora.dropout=0.1", f"run.dir={tmp_path / 'dropout'}") == 2
    assert "cannot be used with this objective (lora.dropout=0.1)" in capsys.readouterr().err


@pytest.mark.slow
def test_micro_batches_do_not_change_the_mean_over_pairs(base: list[str], tmp_path: Path) -> None:
    for name, divided in {"one": (), "two": ("trainer.batch_size=2", "trainer.grad_accum_steps=2")}.items():
        assert train(*base, "objective=orpo", *divided, f"run.dir={tmp_path / name}", "trainer.max_steps=3") == 0
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for key in ("train/loss", "train/grad_norm", "pref/loss", "pref/margin", "pref/length_rejected"):
        assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-4)


@pytest.mark.slow
def test_a_horizon_beyond_the_reference_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(*base, "objective=dpo", "trainer.max_steps=2", f"run.dir={run}") == 0
    assert train(f"resume={run}", "trainer.max_steps=5") == 2
    assert "more pairs than the run began with (trainer.max_steps=5)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(strategy: str, base: list[str], tmp_path: Path) -> None:
    options = ("objective=dpo", "trainer.eval_every=3", "trainer.batch_size=2", "trainer.max_steps=3")
    one = run_ranks(1, tmp_path / "one", *base, *options, "trainer.grad_accum_steps=2")
    two = run_ranks(2, tmp_path / "two", *base, *options, f"strategy={strategy}")
    for key in ("train/loss", "val/loss", "pref/margin"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-5, abs=1e-6)
