"""Stopping and resuming: horizon, time limit, best checkpoint, interrupted evaluations."""

import json
import math
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tinyllm
from tests.support.training_runs import SMALL, digest, logged, metrics, train
from tinyllm.config.cli.main import Invocation
from tinyllm.errors import UserError
from tinyllm.programs import evaluator
from tinyllm.programs import trainer_builder as trainers
from tinyllm.programs.verify_resume import training_settings
from tinyllm.runs.checkpoint import find, read_hint
from tinyllm.utils.stop_signal import listening, remembering_interrupts, unless_nohup


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "steps"),
    [(8, 15), pytest.param(2, 30, marks=pytest.mark.slow), pytest.param(3, 23, marks=pytest.mark.slow)],
)
def test_a_horizon_in_tokens_is_a_point_in_the_data_whatever_the_batch(
    batch_size: int, steps: int, corpus: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    horizon = ("trainer.max_steps=null", "trainer.max_tokens=1280", "trainer.stop_after_steps=10")
    assert train("dataset=text", corpus, *SMALL, *horizon, "schedule=linear", f"run.dir={run}") == 0
    assert train(f"resume={run}", f"trainer.batch_size={batch_size}", f"trainer.stop_after_steps={steps - 2}") == 0
    assert train(f"resume={run}") == 0  # a resume of a resume comes to the same end
    records = metrics(run)
    assert records[-1]["step"] == steps and 1280 - batch_size * 16 < records[-1]["tokens"] <= 1280
    rates = {record["tokens"]: record["train/lr"] for record in records}
    at = [tokens for tokens in rates if tokens > 640]
    assert rates[at[-1]] == pytest.approx(3e-5, rel=1e-6)  # min_lr at the last step
    done = (at[0] - 128) / (1280 - 128)  # after two steps of warm-up a straight line over the tokens
    assert rates[at[0]] == pytest.approx(3e-4 - done * 2.7e-4, rel=0.1)
    assert train(f"resume={run}") == 0 and metrics(run) == records


@pytest.mark.slow
def test_max_minutes_belongs_to_each_start(corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", f"run.dir={run}", "resume=auto"]
    for steps in (1, 2):
        assert train(*shared, "trainer.max_minutes=1e-9") == 0
        assert logged(run, "step")[-1] == steps


def scores(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    values = iter(losses)
    monkeypatch.setattr(evaluator, "evaluate_sources", lambda *a, **k: {"val/loss": next(values), "val/ppl": 1.0})


@pytest.mark.slow
def test_the_best_checkpoint_is_one_of_the_steps_the_run_keeps(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shared = ["trainer.eval_every=2", "trainer.checkpoint_every=2", "checkpoint.keep=3", "schedule=constant"]
    scores(monkeypatch, [3.0, 2.5, 1.0])
    assert train("dataset=text", corpus, *SMALL, *shared, "trainer.max_steps=6", f"run.dir={run}") == 0
    best = lambda: read_hint(run / "checkpoints", "best")  # noqa: E731
    assert best() == run / "checkpoints/step-000006"
    scores(monkeypatch, [2.7])
    capsys.readouterr()
    back = f"resume={run / 'checkpoints/step-000004'}"
    assert train(back, "optimizer.lr=1e-5") == 0
    said = capsys.readouterr().out
    assert (
        "back to step 4: the metrics of later steps are removed now, step-000006 when the next checkpoint is saved"
        in said
    )
    assert best() == run / "checkpoints/step-000004"
    assert "best val loss: 2.5000" in said and "(step 4)" in said
    # the best that the state knows was removed meanwhile: the best of those that are there takes its place
    for path in (run / "checkpoints/step-000004").iterdir():
        path.unlink()
    (run / "checkpoints/step-000004").rmdir()
    scores(monkeypatch, [2.6])
    assert train(f"resume={run}", "trainer.max_steps=8") == 0
    assert best() == run / "checkpoints/step-000008"
    assert find(run).state()["best_loss"] == 2.6


@pytest.mark.slow
def test_an_evaluation_interrupted_by_a_signal_is_repeated_on_resume(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including that of the last step, after which nothing else is left to do."""
    asked: list[int] = []
    original = evaluator.evaluate_sources

    def evaluate(*arguments: Any, stopping: Any, **settings: Any) -> Any:
        def counted() -> bool:
            asked.append(1)
            if len(asked) in (2, 13):
                os.kill(os.getpid(), signal.SIGTERM)
            return bool(stopping())

        return original(*arguments, stopping=counted, **settings)

    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "trainer.eval_every=2", "ema.enabled=true"]
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    monkeypatch.setattr(evaluator, "evaluate_sources", evaluate)
    parts = tmp_path / "parts"
    assert train(*shared, f"run.dir={parts}") == 143
    assert len(asked) == 2
    assert logged(parts, "step") == [1, 2] and not logged(parts, "val/loss") and find(parts).step == 2
    assert train(f"resume={parts}") == 143
    assert logged(parts, "step") == [1, 2, 3, 4] and len(logged(parts, "val/loss")) == 1 and find(parts).step == 4
    assert json.loads((parts / "run.json").read_text())["status"] == "interrupted"
    assert train(f"resume={parts}") == 0
    assert metrics(parts) == metrics(tmp_path / "whole")
    assert digest(parts) == digest(tmp_path / "whole")
    assert read_hint(parts / "checkpoints", "best") == parts / "checkpoints/step-000004"


def test_a_signal_interrupts_a_sample(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = evaluator.generate_text, []

    def generate_text(*arguments: Any, stopping: Any, **settings: Any) -> str:
        def counted() -> bool:
            asked.append(1)
            if len(asked) == 3:
                os.kill(os.getpid(), signal.SIGHUP)
            return bool(stopping())

        return original(*arguments, stopping=counted, **settings)

    monkeypatch.setattr(evaluator, "generate_text", generate_text)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # the tests may run under nohup
    run = tmp_path / "run"
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "trainer.sample_every=2", f"run.dir={run}"]
    assert train(*shared) == 129
    assert len(asked) == 3 and find(run).step == 2


def test_sighup_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert unless_nohup((signal.SIGHUP, signal.SIGTERM)) == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.exit_code == 129
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_callback_that_raises_is_reported_once_and_training_continues(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinyllm.loggers.curves import Curves

    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("on purpose")

    for name in ("on_log", "on_evaluate", "on_record", "on_checkpoint", "on_end", "state_dict"):
        monkeypatch.setattr(Curves, name, fail)
    run = tmp_path / "run"
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=2", "trainer.eval_every=1", f"run.dir={run}"]
    assert train(*shared) == 0
    said = capsys.readouterr().out
    assert said.count("Curves failed in on_log (ZeroDivisionError: on purpose); training continues") == 1
    assert "finished at step 2" in said
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_perplexity_that_overflows_is_inf(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    settings = ["trainer.max_steps=1", "trainer.eval_every=1", "model.init_std=300", f"run.dir={run}"]
    assert train("dataset=text", corpus, *SMALL, *settings) == 0
    said = capsys.readouterr().out
    assert said.count("perplexity inf") == 2 and "finished at step 1" in said
    record = metrics(run)[-1]
    assert record["val/loss"] > 710 and record["val/ppl"] is None
    assert math.isfinite(find(run).state()["best_loss"])


@pytest.mark.slow
def test_a_run_without_checkpoints(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same records as with checkpoints, no files of weights, and no suggested command that needs them."""
    shared = ["dataset=text", corpus, *[one for one in SMALL if "checkpoint_every" not in one], "trainer.max_steps=2"]
    shared += ["trainer.eval_every=1"]
    run, saving = tmp_path / "run", tmp_path / "saving"
    assert train(*shared, f"run.dir={saving}") == 0
    capsys.readouterr()
    assert train(*shared, f"run.dir={run}", "checkpoint.enabled=false") == 0
    said = capsys.readouterr().out
    assert "note: nothing is saved: checkpoint.enabled=false" in said and "finished at step 2" in said
    assert not any(
        word in said for word in ("tinyllm.generate", "tinyllm.evaluate", "tinyllm.train resume", "checkpoint at")
    )
    assert metrics(run) == metrics(saving) and not list(run.rglob("*.safetensors"))
    for more, key in (
        ([f"run.dir={run}", "resume=auto"], "checkpoint.enabled=false"),
        (["checkpoint.keep=3"], "checkpoint.keep=3"),
        (["trainer.checkpoint_every=5"], "trainer.checkpoint_every=5"),
    ):
        assert train(*shared, "checkpoint.enabled=false", *more) == 2
        assert f"({key})" in capsys.readouterr().err
    assert train(f"resume={saving}", "checkpoint.enabled=false", "trainer.max_steps=4") == 2
    assert train(f"resume={run}") == 2
    assert "no checkpoint found" in capsys.readouterr().err
    cfg = tinyllm.compose("checkpoint.enabled=false", program="verify_resume")
    with pytest.raises(UserError, match=r"nothing to resume from \(checkpoint.enabled=false\)"):
        training_settings(cfg, Invocation())


def test_a_stop_before_the_first_step_suggests_no_command_that_would_fail(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trainers.make_compiler

    def make_compiler(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(trainers, "make_compiler", make_compiler)
    assert train("dataset=text", corpus, *SMALL, f"run.dir={tmp_path / 'run'}") == 130
    said = capsys.readouterr().out
    assert "interrupted at step 0" in said and "tinyllm.generate" not in said and "resume=" not in said


def test_a_ctrl_c_that_a_library_swallows_still_stops_the_run() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with remembering_interrupts():
            with suppress(BaseException):  # as an import in a bare except does
                signal.raise_signal(signal.SIGINT)
            with listening() as stop:
                assert stop.signal == signal.SIGINT
        with remembering_interrupts(), listening() as stop:
            assert stop.signal is None
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
