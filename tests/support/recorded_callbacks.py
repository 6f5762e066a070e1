"""A simulated run: its records go to metrics.jsonl and to a logger, as in the trainer."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.fake_run import info
from tinyllm.runs.metrics_log import MetricsLog
from tinyllm.training.callbacks import Callback, CallbackList, Outcome

CONFIG = {"seed": 7, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}, "resume": None}


class Messages(Callback):
    """Collects the messages for the user."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def record(step: int) -> dict[str, float]:
    """A record of metrics.jsonl; every fifth step has an evaluation."""
    axes = {"step": step, "tokens": step * 8192, "flops": step * 8192 * 5_020_000, "seconds": round(step * 0.123, 3)}
    metrics = {"train/loss": 1.5 + 3 * math.exp(-step / 80), "train/lr": 1e-3 / step, "speed/tokens_per_s": 6e4 / 7}
    return axes | metrics | ({"val/loss": 1.6 + 3 * math.exp(-step / 80)} if step % 5 == 0 else {})


def play(
    logger: Callback,
    run_dir: Path,
    *,
    start: int = 0,
    until: int,
    state: Mapping[str, Any] | None = None,
    status: str = "finished",
) -> tuple[dict[str, Any], list[str]]:
    """Simulate training from ``start`` to ``until``; returns the logger state to save, and the messages."""
    messages = Messages()
    events = CallbackList([messages, logger])
    run_dir.mkdir(exist_ok=True)
    log = MetricsLog(run_dir / "metrics.jsonl", step=start)
    events.load_state_dict(state or {})
    events.on_start(replace(info(run_dir, start_step=start), config=CONFIG))
    for step in range(start + 1, until + 1):
        if step % 5 == 0:
            events.on_sample(step, f"sample {step}:\n  two <b>lines</b>")
        log.write(line := record(step))
        events.on_record(line)
    saved = events.state_dict()
    events.on_end(ended(run_dir, until, status))
    log.close()
    return saved, messages.messages


def ended(run_dir: Path, step: int, status: str) -> Outcome:
    return Outcome(
        status=status, step=step, tokens=step * 8192, seconds=1.5, run_dir=run_dir, metrics={}, best_step=5,
        best_val_loss=1.25,
    )  # fmt: skip
