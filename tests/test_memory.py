"""What is told of memory: estimates by the optimizer's own account, and what needed how much when it runs out."""

import errno
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinyllm
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.errors import UserError
from tinyllm.programs import evaluate, generate, run_checks
from tinyllm.programs import load_model as loading
from tinyllm.programs.builders import build_model, build_optimizer, optimizer_bytes
from tinyllm.programs.describe import figures_of
from tinyllm.training.trainer import Trainer
from tinyllm.utils import memory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"dataset.path={write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')}"


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_the_state_is_what_the_optimizer_says(name: str, tied: str) -> None:
    sizes = [one for one in SMALL if one.startswith("model.")]
    cfg = tinyllm.compose(*sizes, f"optimizer={name}", f"model.tie_embeddings={tied}")
    model = build_model(cfg, vocab_size=20, seed=3, device=torch.device("cpu"), allow=frozenset())
    optimizer, _ = build_optimizer(cfg, model, allow=frozenset())
    said = optimizer_bytes(cfg, model, allow=frozenset())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert said == sum(value.nbytes for value in kept if value.ndim)  # AdamW also counts steps, in a scalar each


def test_describe_asks_the_optimizer_and_divides_among_the_ranks_that_share() -> None:
    sizes = [one for one in SMALL if one.startswith("model.")]
    figures = {}
    for options in ((), ("optimizer=lion",), ("strategy=fsdp", "strategy.nproc_per_node=4"), ("ema.enabled=true",)):
        facts, notes = figures_of(tinyllm.compose(*sizes, "optimizer=adamw", *options, program="describe"))
        figures[options[:1]] = facts["memory"]
        assert facts["memory"]["together"] == sum(facts["memory"].values()) - facts["memory"]["together"]
        assert any("each of 4 ranks" in note for note in notes) == ("strategy=fsdp" in options)
    weights = figures[()]["weights"]
    assert figures[()]["optimizer"] == 2 * weights and figures["optimizer=lion",]["optimizer"] == weights
    assert figures["strategy=fsdp",]["weights"] == weights // 4
    assert figures["ema.enabled=true",]["average"] == weights


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"
                      " allocate 640000000000 bytes. Error code 12 (Cannot allocate memory)"), "640 GB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …"), "21.5 GB"),
        (np._core._exceptions._ArrayMemoryError((10**6, 10**3), np.dtype(np.int64)), "8 GB"),
        (MemoryError(), "an allocation failed"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_what_was_asked_for_is_read_from_the_error(error: Exception, amount: str) -> None:
    with (
        pytest.raises(UserError, match=r"not enough memory \(a step\): ") as told,
        memory.memory_for("a step", hint="x"),
    ):
        raise error
    assert amount.split()[0] in told.value.hint and told.value.hint.endswith("; x")


def test_other_errors_are_left_alone() -> None:
    for error in (RuntimeError("shapes cannot be multiplied"), OSError(errno.ENOSPC, "full"), ValueError("x")):
        assert not memory.is_out_of_memory(error)
        with pytest.raises(type(error)), memory.memory_for("a step", hint="x"):
            raise error


@pytest.mark.slow
def test_each_part_of_a_run_says_what_needed_memory(
    tiny_run: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000000 bytes.")

    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=2", "trainer.eval_every=1", "trainer.sample_every=1"]
    for place, name, what in (
        (Trainer, "train_step", "step 1: 4 sequences of 16 tokens at a time"),
        ("tinyllm.programs.evaluator", "evaluate_sources", "the evaluation after step 1"),
        ("tinyllm.programs.evaluator", "generate_text", "the sample after step 1"),
        ("tinyllm.models.transformer", "Transformer.__init__", "building the model"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{place}.{name}", fail) if isinstance(place, str) else patch.setattr(place, name, fail)
            assert train(*shared, f"run.dir={tmp_path / name}") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: not enough memory ({what}): 5.00 GB more were requested; ")
    cfg = tinyllm.compose(f"run={tiny_run}", program="evaluate")
    monkeypatch.setattr("tinyllm.programs.evaluate.evaluate_sources", fail)
    with pytest.raises(UserError, match=r"not enough memory \(the evaluation\): 5.00 GB more"):
        evaluate.evaluate_run(cfg, cfg.run)
    monkeypatch.setattr("tinyllm.inference.session.generate_batch", fail)
    cfg = tinyllm.compose(f"run={tiny_run}", program="generate")
    with pytest.raises(UserError, match=r"not enough memory \(generation\): 5.00 GB more"):
        generate.open_session(cfg, cfg.run, ["a"]).texts(["a"], seed=1)
    monkeypatch.setattr(loading, "fill", fail)
    with pytest.raises(UserError, match=r"not enough memory \(the weights of .*\): 5.00 GB more"):
        tinyllm.load(tiny_run)


def test_a_model_beyond_all_memory_is_refused_before_anything_is_made(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"run.dir={tmp_path / 'run'}"
    assert train("dataset=text", corpus, *SMALL, "model.d_model=400000", run) == 2
    said = capsys.readouterr().err
    assert "model.d_model=400000" in said
    assert re.search(r"weights, gradients and optimizer state need [\d.]+ TB of .* available", said)
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3, 4] * 40, [2**31 - 1, 2, 3, 4] * 40], dtype=np.int64))
    monkeypatch.setattr(run_checks, "device_memory", lambda device: 10**9)
    data = ["dataset=npy", "tokenizer=ids", f"dataset.path={tmp_path / 'ids.npy'}"]
    assert train(*data, *SMALL, run) == 2
    assert "(largest id 2147483647)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert math.isfinite(memory.machine_memory() or 0)
