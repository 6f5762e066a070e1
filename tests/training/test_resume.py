"""A run that was stopped and resumed equals the uninterrupted run, bit for bit."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import SMALL, digest, logged, metrics, train, train_elsewhere
from tinyllm.runs.directory import LockedRunDir
from tinyllm.runs.facts import read_run_json

N = 8
OPTIONS = {
    "plain": (),
    "dropout": ("model.dropout=0.2", "model.attn_dropout=0.1"),
    "accumulation": ("trainer.grad_accum_steps=3", "trainer.batch_size=2"),
    "bf16": ("trainer.precision=bf16",),
    "bf16 with kernels": ("trainer.precision=bf16", "model.n_heads=1", "trainer.batch_size=8"),
    "fp16 with scaler": ("trainer.precision=fp16",),
    "wsd": ("schedule=wsd", "schedule.shape=sqrt"),
    "constant, no clip": ("schedule=constant", "trainer.grad_clip=0"),
    "linear, workers": ("schedule=linear", "dataloader.workers=2"),
    "terms of training alone": ("objective.label_smoothing=0.1", "objective.z_loss=1e-3"),
    "ema": ("ema.enabled=true", "ema.update_every=2", "trainer.eval_every=2"),
    "lion": ("optimizer=lion", "optimizer.lr=1e-3"),
    "muon": ("optimizer=muon", "optimizer.adamw_lr=1e-3", "optimizer.normalize_neurons=true"),
    "mup": ("parametrization=mup", "optimizer=muon", "optimizer.scale=spectral", "moe=aux_free"),
    "adamw8bit": ("optimizer=adamw8bit", "optimizer.lr=1e-3"),
    "gqa glu learned untied": (
        "attn=gqa", "model.n_kv_heads=1", "ffn=swiglu", "pos=learned", "model.tie_embeddings=false",
    ),
    "layernorm parallel qk_norm": (
        "norm=layernorm", "model.bias=true", "model.parallel_block=true", "model.block.attn.qk_norm=true",
        "model.short_conv=3",
    ),
    "observed": (
        "trainer.eval_every=3", "trainer.sample_every=2", "trainer.sample_tokens=5", "trainer.checkpoint_every=2",
        "trainer.log_every=3",
    ),
    "epochs": ("trainer.batch_size=60",),
    "bpe": ("tokenizer=bpe", "tokenizer.vocab_size=300"),
    "curriculum": ("model.max_seq_len=36", "curriculum.enabled=true", "curriculum.steps=7", "model.dropout=0.1"),
    "curriculum, workers, accumulation": (
        "model.max_seq_len=36", "curriculum.enabled=true", "dataloader.workers=2", "trainer.grad_accum_steps=2",
    ),
    "curriculum, workers started anew": (
        "model.max_seq_len=36", "curriculum.enabled=true", "curriculum.steps=8", "dataloader.workers=1",
        "dataloader.persistent_workers=false", "trainer.batch_size=60",
    ),
}  # fmt: skip
EVERY_DAY = {"muon"}
ALSO_ELSEWHERE = {"bf16", "fp16 with scaler", "lion", "adamw8bit", "wsd", "constant, no clip"}
"""Options that tests/faults/test_every_combination.py covers as well."""
SETS = [
    pytest.param(
        options,
        id=name,
        marks=() if name in EVERY_DAY else pytest.mark.exhaustive if name in ALSO_ELSEWHERE else pytest.mark.slow,
    )
    for name, options in OPTIONS.items()
]


@pytest.mark.parametrize("options", SETS)
def test_train_2n_equals_train_n_and_resume_n(options: tuple[str, ...], corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, f"trainer.max_steps={N}", *options]
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={tmp_path / 'parts'}", "trainer.stop_after_steps=5") == 0
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert logged(tmp_path / "whole", "step")[-1] == N


def test_the_same_command_twice_gives_the_same_bits(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "model.dropout=0.1"]
    for name in ("a", "b"):
        assert train(*shared, f"run.dir={tmp_path / name}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'other'}", "seed=7") == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "other")


@pytest.mark.slow
def test_evaluation_samples_and_logging_do_not_change_a_run(corpus: str, tmp_path: Path) -> None:
    """Evaluation, samples, checkpoints, logging and workers change no bit of the weights."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=6", "model.dropout=0.1"]
    variants = {
        "bare": ("trainer.log_every=0",),
        "evaluated": ("trainer.eval_every=1", "trainer.eval_train_tokens=50"),
        "rarely": ("trainer.eval_every=5", "trainer.eval_tokens=100"),
        "sampled": ("trainer.sample_every=1", "trainer.sample_tokens=7"),
        "saved": ("trainer.checkpoint_every=1",),
        "workers": ("dataloader.workers=1", "dataloader.prefetch_factor=3"),
    }
    weights = {}
    for name, options in variants.items():
        assert train(*shared, f"run.dir={tmp_path / name}", *options) == 0
        weights[name] = (next((tmp_path / name / "checkpoints").glob("step-000006")) / "model.safetensors").read_bytes()
    assert len(set(weights.values())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.exhaustive),
    ],
)
def test_a_signal_finishes_the_step_saves_and_the_rerun_is_exact(
    number: signal.Signals, code: int, corpus: str, tmp_path: Path
) -> None:
    steps = 150
    shared = ["dataset=text", corpus, *SMALL, f"trainer.max_steps={steps}", "dataloader.workers=1"]
    process = train_elsewhere(*shared, f"run.dir={tmp_path / 'parts'}")
    while not logged(tmp_path / "parts", "step"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    done = logged(tmp_path / "parts", "step")[-1]
    assert 0 < done < steps
    assert train("resume=auto", f"run.dir={tmp_path / 'parts'}", *shared) == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_kill_9_loses_at_most_checkpoint_every_steps(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=60", "trainer.checkpoint_every=7"]
    process = train_elsewhere(*shared, f"run.dir={tmp_path / 'parts'}")
    while len(logged(tmp_path / "parts", "step")) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines())
    newest = max(int(path.name[5:]) for path in (tmp_path / "parts" / "checkpoints").glob("step-*"))
    assert done - newest <= 7 + 1
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert not list((tmp_path / "parts" / "checkpoints").glob(".tmp*"))


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("dataset=text", corpus, *SMALL, "trainer.max_steps=2", f"run.dir={tmp_path / 'run'}") == 0
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file()
    }
    capsys.readouterr()
    assert train(f"resume={tmp_path / 'run'}") == 0
    assert "complete at step 2 of 2" in capsys.readouterr().out
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").rglob("*") if path.is_file()
    }


class Killed(BaseException):
    """Nothing handles it, as nothing handles ``kill -9``."""


def test_a_run_killed_between_its_last_checkpoint_and_its_result_is_completed(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("dataset=text", corpus, *SMALL, "trainer.max_steps=2", "trainer.eval_every=2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(*settings, f"run.dir={whole}") == 0

    write = LockedRunDir.write_status

    def killed_at_the_end(directory: LockedRunDir, status: str, **facts: Any) -> None:
        if status != "running":
            raise Killed
        write(directory, status, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(LockedRunDir, "write_status", killed_at_the_end)
        with pytest.raises(Killed):
            train(*settings, f"run.dir={killed}")
    assert read_run_json(killed)["status"] == "running"
    assert train(f"resume={killed}") == 0
    assert "nothing to do" not in capsys.readouterr().out
    results = [read_run_json(run)["result"] for run in (whole, killed)]
    assert results[1]["metrics"].keys() == results[0]["metrics"].keys()
    kept = [(one["status"], one["step"], one["tokens"], one["best_val_loss"], one["best_step"]) for one in results]
    assert kept[0] == kept[1] and results[0]["metrics"]["val/loss"] == results[1]["metrics"]["val/loss"]
    assert digest(killed) == digest(whole) and (killed / "curves.png").is_file()
    assert train(f"resume={killed}") == 0
    assert "complete at step 2 of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_longer_horizon_shows_both_learning_rates(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "schedule=linear"]
    assert train(*shared, "trainer.max_steps=4", f"run.dir={tmp_path / 'run'}") == 0
    capsys.readouterr()
    assert train(f"resume={tmp_path / 'run'}", "trainer.max_steps=8") == 0
    assert "horizon 4 → 8 steps" in capsys.readouterr().out
    rates = logged(tmp_path / "run", "train/lr")
    assert len(rates) == 8
    assert rates[3] == pytest.approx(3e-5) and rates[7] == pytest.approx(3e-5) and rates[4] > rates[5] > rates[6]


REFUSED = {
    "model.d_model=64": "model.d_model",
    "attn=mqa": "model.block.attn",
    "model.tie_embeddings=false": "model.tie_embeddings",
    "tokenizer=byte": "tokenizer",
    "dataset.val_fraction=0.2": "dataset.val_fraction",
    "dataset=pydocs": "dataset",
    "optimizer=lion": "optimizer._target_",
    "trainer.seq_len=8": "trainer.seq_len",
}


@pytest.fixture(scope="module")
def stopped_run(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after two of four steps."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    assert (
        train("dataset=text", corpus, *SMALL, "trainer.max_steps=4", "trainer.stop_after_steps=2", f"run.dir={path}")
        == 0
    )
    return path


@pytest.mark.parametrize(("override", "key"), REFUSED.items())
@pytest.mark.every(3)
def test_resume_refuses_another_architecture_tokenizer_or_data(
    override: str, key: str, stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(stopped_run)
    assert train(f"resume={stopped_run}", override) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and key in error and "init_from" in error
    assert digest(stopped_run) == before


def test_resume_refuses_a_changed_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 100)
    assert (
        train(
            "dataset=text",
            f"dataset.path={text}",
            *SMALL,
            "trainer.max_steps=4",
            "trainer.stop_after_steps=2",
            f"run.dir={tmp_path / 'run'}",
        )
        == 0
    )
    text.write_text("to be or not to bee " * 100)
    assert train(f"resume={tmp_path / 'run'}") == 2
    assert "differs from the one the run was trained with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_changed_batch_size_continues_at_the_same_point_in_the_data(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sequence of an epoch is repeated or skipped when the batch size changes."""
    from tinyllm.data.sampler import Sampler

    seen: list[int] = []
    original = Sampler.windows
    monkeypatch.setattr(
        Sampler, "windows", lambda self, samples: (seen.extend(samples.tolist()), original(self, samples))[1]
    )
    assert (
        train(
            "dataset=text",
            corpus,
            *SMALL,
            "trainer.max_steps=6",
            "trainer.stop_after_steps=3",
            f"run.dir={tmp_path / 'run'}",
        )
        == 0
    )
    assert train(f"resume={tmp_path / 'run'}", "trainer.batch_size=3") == 0
    assert seen == list(range(3 * 4 + 3 * 3))


def test_init_from_loads_only_the_weights(
    stopped_run: Path, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=1", f"init_from={stopped_run}"]
    assert train(*shared, f"run.dir={tmp_path / 'same'}", "optimizer.lr=0") == 0
    weights = "model.safetensors"
    old = stopped_run / "checkpoints" / "step-000002" / weights
    assert (tmp_path / "same" / "checkpoints" / "step-000001" / weights).read_bytes() == old.read_bytes()
    assert train(*shared, f"run.dir={tmp_path / 'other'}", "tokenizer=byte") == 2
    assert "the run in init_from used a different tokenizer" in capsys.readouterr().err
    assert train(*shared, f"run.dir={tmp_path / 'other'}", "parametrization=mup") == 2
    assert (
        "different parametrization multipliers" in (line := capsys.readouterr().err)
        and "Standard(), this one MuP(base_width=" in line
    )
    as_base = ("parametrization=mup", "model.parametrization.base_width=32")
    assert train(*shared, f"run.dir={tmp_path / 'base'}", "optimizer.lr=0", *as_base) == 0


@pytest.mark.slow
def test_a_run_in_use_is_refused_and_free_after_kill_9(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = train_elsewhere(
        "dataset=text", corpus, *SMALL, "trainer.max_steps=100000", "trainer.checkpoint_every=1", f"run.dir={run}"
    )
    while not list((run / "checkpoints").glob("step-*")) if run.exists() else True:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    try:
        assert train(f"resume={run}", "trainer.stop_after_steps=1") == 2
        error = capsys.readouterr().err
        assert "in use" in error and f"pid {process.pid}" in error
    finally:
        process.kill()
        process.communicate()
    assert train(f"resume={run}", "trainer.max_minutes=0.0001") == 0
