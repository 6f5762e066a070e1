"""Whole runs of reward models: from a language model, with adapters, in parts, on ranks, and what they refuse to do."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.copies import run as run_ranks
from tests.support.fixtures import Call
from tests.support.preferences import write_preferences
from tests.support.training_runs import SMALL, digest, logged, metrics, train, write_corpus
from tinyllm import compose
from tinyllm.programs.evaluate import evaluate_run
from tinyllm.runs.checkpoint import find

SETTINGS = ("model.max_seq_len=32", "trainer.batch_size=4", "trainer.max_steps=6", "model.tie_embeddings=false")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a reward model from the weights of a language model with a head of its own."""
    folder = tmp_path_factory.mktemp("base")
    text, run = write_corpus(folder / "text.txt", n_words=300), folder / "run"
    of_text = (f"dataset.path={text}", "dataset=text", "tokenizer=byte", "trainer.max_steps=1", f"run.dir={run}")
    assert train(*SMALL, *SETTINGS, *of_text) == 0
    pairs = write_preferences(folder / "pairs.jsonl")
    data = ("dataset=preferences", f"dataset.path={pairs}", f"init_from={run}")
    return [*SMALL, *SETTINGS, *data, "objective=reward", "optimizer.lr=1e-2"]


@pytest.mark.slow
def test_a_reward_model_starts_at_ln_2_learns_and_is_evaluated(base: list[str], tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    assert (
        train(
            *base,
            "trainer.max_steps=30",
            "trainer.eval_every=15",
            f"run.dir={run}",
            "ema.enabled=true",
            "ema.decay=0.5",
        )
        == 0
    )
    records = metrics(run)
    assert records[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-7) and records[0]["pref/accuracy"] == 0.5
    assert records[-1]["train/loss"] < 0.6 and records[-1]["pref/accuracy"] == 1
    again = evaluate_run(compose(f"run={run}", "checkpoint=last", "precision=fp32", program="evaluate"), str(run))
    assert {key: again[key] for key in again if key.startswith("val/")} == {
        key: pytest.approx(value, rel=1e-6) for key, value in records[-1].items() if key.startswith("val/")
    }
    tensors = load_file(find(run, prefer="last").path / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 32) and "head.weight" not in tensors
    for program, arguments in (
        ("generate", ()),
        ("chat", ()),
        ("train", (*SMALL, *SETTINGS, f"init_from={run}", "run.dir=x", "dataset=stdlib", "tokenizer=byte")),
    ):
        done = call(program, *(arguments or (f"run={run}",)))
        assert done.code == 2 and done.made == [], done
        assert "reward model" in done.err or "no chat template" in done.err, done.err
    done = call("train", *base, "trainer.sample_every=2")
    assert done.code == 2 and "trainer.sample_every=2" in done.err and "writes no text" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("lora=lora", "ema.enabled=true")], ids=["all weights", "adapters"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    base: list[str], more: tuple[str, ...], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = (*base, *more, "trainer.eval_every=3")
    assert train(*settings, f"run.dir={whole}") == 0
    assert train(*settings, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)
    again = evaluate_run(compose(f"run={whole}", "checkpoint=last", "precision=fp32", program="evaluate"), str(whole))
    assert again["val/loss"] == pytest.approx(metrics(whole)[-1]["val/loss"], rel=1e-5)
    further = tmp_path / "further"  # from its own score, not from zeros
    assert (
        train(*base[:-1], f"init_from={whole}", "trainer.max_steps=1", "optimizer.lr=1e-6", f"run.dir={further}") == 0
    )
    assert abs(metrics(further)[0]["train/loss"] - math.log(2)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(strategy: str, base: list[str], tmp_path: Path) -> None:
    options = ("trainer.eval_every=3", "trainer.batch_size=2", "trainer.max_steps=3")
    one = run_ranks(1, tmp_path / "one", *base, *options, "trainer.grad_accum_steps=2")
    two = run_ranks(2, tmp_path / "two", *base, *options, f"strategy={strategy}")
    for key in ("train/loss", "val/loss", "pref/margin"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-5, abs=1e-6)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
def test_muon_mup_layerdrop_checkpointing_and_compilation(base: list[str], tmp_path: Path) -> None:
    """Each trains, and compilation and activation checkpointing change no more than rounding."""
    others = ("optimizer=muon", "parametrization=mup", "model.parametrization.base_width=16", "model.layerdrop=0.2")
    settings = [one for one in base if not one.startswith(("init_from", "optimizer"))]
    assert train(*settings, *others, "tokenizer=byte", "optimizer.lr=1e-2", f"run.dir={tmp_path / 'muon'}") == 0
    assert all(math.isfinite(loss) for loss in logged(tmp_path / "muon", "train/loss"))
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert train(*base, f"run.dir={plain}") == 0
    torch._dynamo.reset()
    backend = (
        "trainer.compile.enabled=true",
        "trainer.compile.backend=aot_eager",
        "trainer.activation_checkpointing=true",
    )
    assert train(*base, *backend, f"run.dir={compiled}") == 0
    assert logged(compiled, "train/loss") == pytest.approx(logged(plain, "train/loss"), rel=1e-4)
