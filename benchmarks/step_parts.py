"""What each part of a training step costs, in microseconds: for tiny models, where calls cost more than arithmetic.

    python benchmarks/step_parts.py [--model pico] [--steps 300] [--json results.json] [setting …]

Trains on random tokens (2 rows of 32, vocabulary 256, as in ``gpu.py --tiny``) with timers around the parts of
``Trainer.train_step`` and around what follows each step. Reports medians without the first third of the steps, and the
whole step of the plain loop in ``plain_gpt.py`` at the same sizes. CPU time of the main thread, which other programs
disturb least; with a GPU, whose time is that of the waits, only the sums over Python code mean anything.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import plain_gpt
import torch

import tinyllm.train
from tinyllm.training import trainer as loop
from tinyllm.training.trainer import Trainer

VOCAB, ROWS, LENGTH = 256, 2, 32
OFF = ("trainer.eval_every=0", "trainer.sample_every=0", "checkpoint.enabled=false", "trainer.log_every=10")
PARTS = {
    "seed_device": "seeds of dropout",
    "clip": "norm of the gradients, clipping",
    "to_floats": "metrics to the host",
}
"""Functions of the loop's module, and what they do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.train")
    parser.add_argument("--model", default="pico")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/tokens.npy", np.random.default_rng(0).integers(VOCAB, size=(64, 4097), dtype=np.int32))
        size = [f"model={options.model}", f"trainer.seq_len={LENGTH}", f"model.max_seq_len={LENGTH}"]
        data = ["dataset=npy", f"dataset.path={place}/tokens.npy", f"tokenizer.vocab_size={VOCAB}"]
        steps = ["optimizer=adamw", f"trainer.batch_size={ROWS}", f"trainer.max_steps={options.steps}", *OFF]
        parts = measure([*size, *data, *steps, *options.settings, f"run.dir={place}/run"])
    parts = {name: 1e6 * statistics.median(times[len(times) // 3 :]) for name, times in parts.items()}
    whole = parts.pop("the whole step")
    parts["the rest of the loop"] = whole - sum(parts.values())
    plain = 1e6 * plain_step(options.steps)
    width = max(map(len, parts))
    print(f"{options.model}, {torch.get_num_threads()} threads, load {load:.2f}, µs a step")
    for name, cost in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:{width}}  {cost:7,.0f}")
    print(f"  {'the whole step':{width}}  {whole:7,.0f}\n  {'plain loop':{width}}  {plain:7,.0f}")
    if options.json:
        figures = {"parts": parts, "whole": whole, "plain": plain}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(settings: list[str]) -> dict[str, list[float]]:
    """Seconds of each part in every step."""
    parts: dict[str, list[float]] = defaultdict(list)
    fit = Trainer.fit

    def fit_with_timers(trainer: Trainer) -> Any:
        state, optimizer = trainer.state, trainer.state.optimizer
        batches = trainer.batches
        trainer.batches = lambda: timed_items(batches(), parts["reading the batch"])
        trainer.forward = timed(trainer.forward, parts["forward pass"])
        state.scaler.step = timed(state.scaler.step, parts["optimizer"])  # type: ignore[method-assign]
        optimizer.zero_grad = timed(optimizer.zero_grad, parts["freeing the gradients"])  # type: ignore[method-assign]
        trainer.after_step = timed(trainer.after_step, parts["records, evaluation, checkpoints"])  # type: ignore[method-assign]
        step = timed(trainer.train_step, [])

        def whole(batches: Iterator[Any]) -> dict[str, float]:
            whole_steps.append(time.thread_time())
            return step(batches)

        whole_steps: list[float] = []
        trainer.train_step = whole  # type: ignore[method-assign]
        outcome = fit(trainer)
        parts["the whole step"] = [end - begin for begin, end in pairwise(whole_steps)]
        return outcome

    backward = timed(torch.Tensor.backward, parts["backward pass"])
    with (
        mock.patch.object(Trainer, "fit", fit_with_timers),
        mock.patch.object(torch.Tensor, "backward", backward),
        mock.patch.multiple(loop, **{name: timed(getattr(loop, name), parts[what]) for name, what in PARTS.items()}),
        mock.patch.object(sys, "argv", ["train", *settings]),
    ):
        try:
            tinyllm.train.main()
        except SystemExit as end:
            if end.code:
                raise
    return parts


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The function, which appends the CPU time of each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        result = function(*args, **kwargs)
        times.append(time.thread_time() - began)
        return result

    return call


def timed_items(items: Iterator[Any], times: list[float]) -> Iterator[Any]:
    """The items, appending the CPU time that each took."""
    following = timed(lambda: next(items, None), times)
    while (item := following()) is not None:
        yield item


def plain_step(steps: int) -> float:
    """Median CPU time of a step of the plain loop."""
    torch.manual_seed(0)
    model = plain_gpt.GPT(*plain_gpt.SHAPES["tiny"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    times = []
    for _ in range(steps):
        began = time.thread_time()
        plain_gpt.train_step(model, model, optimizer, torch.randint(VOCAB, (ROWS, LENGTH + 1)))
        times.append(time.thread_time() - began)
    return statistics.median(times[steps // 3 :])


if __name__ == "__main__":
    main()
