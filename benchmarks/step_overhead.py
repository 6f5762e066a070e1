"""Cost of EMA, clipping, metrics and logging, as a share of a training step.

    python benchmarks/step_overhead.py [--model baby] [--logger wandb] [--steps 60] [setting …] [--json results.json]

In one run of tinyllm.train, precedes each step with a bare one on the same model: forward, loss, backward and optimizer
with separate batches, so that both meet the machine in the same state. The steps of one record (trainer.log_every) form
a block. Reports the median share over the blocks and its quartiles, without the first block. Evaluation, samples and
checkpoints are off. Needs an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import tinyllm.train
from tinyllm.training.trainer import Trainer

LOG_EVERY = 10
MEASURED = ("ema.enabled=true", "trainer.grad_clip=1.0", f"trainer.log_every={LOG_EVERY}")
OFF = ("trainer.eval_every=0", "trainer.sample_every=0", "trainer.checkpoint_every=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.train")
    parser.add_argument("--model", default="baby")
    parser.add_argument("--logger", default="wandb")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        chosen = [
            f"model={options.model}",
            "optimizer=adamw",
            f"logger={options.logger}",
            f"trainer.max_steps={options.steps}",
        ]
        bare, whole = measure([*chosen, *MEASURED, *OFF, *options.settings, f"run.dir={place}/run"])
    shares = [sum(whole[at : at + LOG_EVERY]) / sum(bare[at : at + LOG_EVERY]) - 1 for at in blocks(len(whole))]
    first, median, third = statistics.quantiles(shares, n=4)
    figures = {
        "share": median,
        "quartiles": [first, third],
        "bare_s": statistics.median(bare),
        "whole_s": statistics.median(whole),
        "blocks": len(shares),
        "threads": torch.get_num_threads(),
        "load_before": load,
    }
    print(
        f"{options.model}, logger={options.logger}, {figures['threads']} threads, load {load:.2f}: {median:+.2%} of a"
        f" step (quartiles {first:+.2%} to {third:+.2%}, {len(shares)} blocks of {LOG_EVERY});"
        f" {figures['bare_s']:.3f} s bare, {figures['whole_s']:.3f} s with everything"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def blocks(steps: int) -> range:
    """Start of each block, without the first and without an incomplete last one."""
    return range(LOG_EVERY, steps - LOG_EVERY + 1, LOG_EVERY)


def measure(settings: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of every bare and every full step, which alternate."""
    bare: list[float] = []
    whole: list[float] = []
    marks: list[float] = []
    own_batches: list[Iterator[Any]] = []
    train_step = Trainer.train_step

    def both(trainer: Trainer, batches: Iterator[Any]) -> dict[str, float]:
        if not own_batches:
            own_batches.append(trainer.batches())
        began = time.perf_counter()
        whole.extend(began - mark for mark in marks)  # the previous full step, with everything that followed it
        bare_step(trainer, own_batches[0])
        marks[:] = [time.perf_counter()]
        bare.append(marks[0] - began)
        return train_step(trainer, batches)

    with mock.patch.object(Trainer, "train_step", both), mock.patch.object(sys, "argv", ["train", *settings]):
        try:
            tinyllm.train.main()
        except SystemExit as end:
            if end.code:
                raise
    return bare, whole


def bare_step(trainer: Trainer, batches: Iterator[Any]) -> None:
    """A bare training step: forward, loss, backward, optimizer."""
    batch = next(batches)
    with trainer.autocast():
        loss = trainer.forward(batch)
    loss.share_of_step(weight=batch.targets.numel(), fraction=1.0).backward()
    trainer.state.optimizer.step()
    trainer.state.optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
