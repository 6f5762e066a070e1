"""Evaluation of objectives that are no cross-entropy of a text, and the reading of a reference."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tinyllm.data.batch import PAIR, Batch
from tinyllm.training.objectives.base import TRAIN_LOSS, Objective
from tinyllm.training.objectives.pairs import LikelihoodObjective
from tinyllm.utils.stop_signal import Interrupted, Stopping

Autocast = Callable[[], AbstractContextManager[object]]


@torch.no_grad()
def evaluate_objective(
    objective: Objective,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Autocast,
    name: str = "val",
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[list[float]], list[list[float]]] = lambda values: [values],
    stopping: Stopping = lambda: False,
) -> dict[str, float]:
    """The metrics of an objective, averaged over all batches; no random stream is touched.

    Args:
        name: prefix of the metrics: the loss is ``val/loss``, and ``pref/margin`` becomes ``val/pref/margin``.
        rank, world_size: the batches are divided over this many processes; the result is that of one process.
        gather: all-gathers a list of values, by rank.
        stopping: checked before each batch of this process.

    Raises:
        Interrupted: ``stopping`` returned true.
    """
    was_training = objective.training
    objective.train(False)
    names: list[str] = []
    rows: list[list[float]] = []
    number = 0
    try:
        for number, batch in enumerate(batches, start=1):
            if (number - 1) % world_size == 0 and stopping():
                raise Interrupted
            if (number - 1) % world_size == rank:
                rows.append(_sums(objective, batch, device, autocast, names))
        if len(rows) * world_size < number:  # a sharded model needs all ranks in every pass: repeat the last batch
            rows.append(_sums(objective, batch, device, autocast, names))
    finally:
        objective.train(was_training)
    gathered = gather([value for row in rows for value in row])
    width = len(names) + 1
    in_order = [values[i : i + width] for i in range(0, len(gathered[0]), width) for values in gathered][:number]
    weight, *sums = (math.fsum(column) for column in zip(*in_order, strict=True))
    return {
        f"{name}/loss" if metric == TRAIN_LOSS else f"{name}/{metric}": total / weight
        for metric, total in zip(names, sums, strict=True)
    }


def _sums(
    objective: Objective, batch: Batch, device: torch.device, autocast: Autocast, names: list[str]
) -> list[float]:
    """The weight of a batch and the sums of its metrics, whose names go into ``names``."""
    with autocast():
        metrics = objective(batch.to(device)).metrics
    names[:] = metrics
    return [float(objective.weight(batch)), *torch.stack(list(metrics.values())).tolist()]


@torch.no_grad()
def read_reference(
    objective: LikelihoodObjective,
    batches: Iterable[Batch],
    *,
    n_pairs: int,
    device: torch.device,
    autocast: Autocast,
    rank: int = 0,
    world_size: int = 1,
    gather_objects: Callable[[object], list[tuple[Tensor, Tensor]]],
    stopping: Stopping = lambda: False,
) -> Tensor:
    """The log-probabilities of both answers of every pair under the model as it is, (n_pairs, 2); NaN for pairs unread.

    The passes are those of training, so before the first step a loss compares equal bits.

    Args:
        batches: composed as training and evaluation will read them; all ranks get the same.
        rank, world_size: the batches are divided over this many processes.
        gather_objects: all-gathers an object, by rank.
        stopping: checked before each batch of this process.

    Raises:
        Interrupted: ``stopping`` returned true.
    """
    numbers, logprobs, number = [], [], 0
    for number, batch in enumerate(batches, start=1):
        if (number - 1) % world_size == 0 and stopping():
            raise Interrupted
        if (number - 1) % world_size == rank:
            numbers.append(batch.extra[PAIR])
            logprobs.append(_both(objective, batch, device, autocast))
    if len(numbers) * world_size < number:
        _both(objective, batch, device, autocast)
    own = (
        torch.cat([torch.zeros(0, dtype=torch.int64), *numbers]),
        torch.cat([torch.zeros(0, 2), *logprobs]),
    )
    table = torch.full((n_pairs, 2), math.nan)
    for of_rank, values in gather_objects(own):
        table[of_rank] = values
    return table


def _both(objective: LikelihoodObjective, batch: Batch, device: torch.device, autocast: Autocast) -> Tensor:
    with autocast():
        pairs, _ = objective.logprobs(batch.to(device))
    return torch.stack([pairs.chosen, pairs.rejected], dim=1).float().cpu()
