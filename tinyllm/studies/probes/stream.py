"""The sequences of a run, each a pure function of seed, use and number, and what is measured on them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyllm.nn.loss import IGNORE
from tinyllm.studies.probes.task import Task
from tinyllm.utils.seeds import stream

Batch = tuple[Tensor, Tensor]


def batches_to_train(
    task: Task, *, seed: int, start_step: int, batch_size: int, grad_accum_steps: int
) -> Iterator[Batch]:
    """Micro-batches (inputs_BT, targets_BT), int64, from a step on and without end; a step's do not depend on how it is
    divided."""
    step = start_step
    while True:
        drawn = task.draw(batch_size * grad_accum_steps, generator(seed, "train", step))
        inputs, targets = (torch.from_numpy(one).split(batch_size) for one in drawn)
        yield from zip(inputs, targets, strict=True)
        step += 1


def batches_to_test(task: Task, *, seed: int, examples: int, batch_size: int) -> Iterator[Batch]:
    """``examples`` sequences, always the same of a seed."""
    drawn = task.draw(examples, generator(seed, "test", task.seq_len))
    inputs, targets = (torch.from_numpy(one).split(batch_size) for one in drawn)
    yield from zip(inputs, targets, strict=True)


def generator(seed: int, use: str, number: int) -> np.random.Generator:
    """The random numbers of one draw; those of training and test come from different streams."""
    return np.random.default_rng(stream(seed, f"probe {use}", number))


@torch.no_grad()
def right_answers(
    model: Any,
    batches: Iterator[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> list[float]:
    """Of each sequence, the share of its questions that the model's likeliest id answers.

    The model is in evaluation mode meanwhile, and in its own mode after it.
    """
    was_training = model.training
    model.train(False)
    shares: list[float] = []
    try:
        for inputs_BT, targets_BT in batches:
            targets_BT = targets_BT.to(device)
            with autocast():
                hidden_BTC = model(inputs_BT.to(device))
                asked_BT = targets_BT != IGNORE
                answers_N = model.logits(hidden_BTC[asked_BT]).argmax(-1)
            right_BT = torch.zeros_like(targets_BT, dtype=torch.float64)
            right_BT[asked_BT] = (answers_N == targets_BT[asked_BT]).double()
            shares += (right_BT.sum(1) / asked_BT.sum(1)).tolist()
    finally:
        model.train(was_training)
    return shares
