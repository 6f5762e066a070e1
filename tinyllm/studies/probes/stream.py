"""Batches of a task, each a pure function of the seed, the use and the step; and the accuracy on them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from tinyllm.data.batch import Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.studies.probes.task import Sequences, Task
from tinyllm.utils.seeds import derive_seed


def batches_to_train(
    task: Task, *, seed: int, start_step: int, batch_size: int, grad_accum_steps: int
) -> Iterator[Batch]:
    """Endless micro-batches from a step on. How a step is divided into micro-batches does not change its sequences."""
    step = start_step
    while True:
        yield from _split(task.draw(batch_size * grad_accum_steps, generator(seed, "train", step)), batch_size)
        step += 1


def batches_to_test(task: Task, *, seed: int, examples: int, batch_size: int) -> Iterator[Batch]:
    """``examples`` test sequences, always the same ones for a seed."""
    # By length, so that tests at several lengths use different random numbers.
    return _split(task.draw(examples, generator(seed, "test", task.seq_len)), batch_size)


def _split(sequences: Sequences, batch_size: int) -> Iterator[Batch]:
    inputs, targets = (torch.from_numpy(ids).split(batch_size) for ids in sequences)
    for inputs_BT, targets_BT in zip(inputs, targets, strict=True):
        yield Batch(inputs=inputs_BT, targets=targets_BT)


def generator(seed: int, use: str, number: int) -> np.random.Generator:
    """Random numbers of one draw. Training and test use different streams."""
    return np.random.default_rng(derive_seed(seed, f"probe {use}", number))


@torch.no_grad()
def correct_shares(
    model: Any,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> list[float]:
    """For each sequence, the share of its questions that the model's most likely token answers correctly.

    The model is in evaluation mode meanwhile; its mode is restored afterwards.
    """
    was_training = model.training
    model.train(False)
    shares: list[float] = []
    try:
        for batch in batches:
            batch = batch.to(device)
            targets_BT = batch.targets
            with autocast():
                hidden_BTC = model(batch.inputs)
                asked_BT = targets_BT != IGNORE
                answers_N = model.logits(hidden_BTC[asked_BT]).argmax(-1)
            correct_BT = torch.zeros_like(targets_BT, dtype=torch.float64)
            correct_BT[asked_BT] = (answers_N == targets_BT[asked_BT]).double()
            shares += (correct_BT.sum(1) / asked_BT.sum(1)).tolist()
    finally:
        model.train(was_training)
    return shares
