"""Expert load: how mixtures of experts spread tokens, the metrics of it, and the balancing based on it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm.nn.feedforward import FeedForward, Routing


class ExpertLoad(NamedTuple):
    """How the mixtures of a model spread the tokens of one micro-batch."""

    balance_loss: Tensor
    """With its coefficient: mean over sequences and over the mixtures that ran, a scalar."""
    loads: dict[int, Tensor]
    """Tokens per routed expert (E,), by the block of the mixture."""

    @classmethod
    def of(cls, routings: Sequence[Routing | None]) -> "ExpertLoad | None":
        """The load of one forward pass; None if no mixture ran.

        Args:
            routings: one per block.
        """
        mixtures = {block: routing for block, routing in enumerate(routings) if routing is not None}
        if not mixtures:
            return None
        balance_loss = torch.stack([routing.loss for routing in mixtures.values()]).mean()
        return cls(balance_loss, {block: routing.load_E for block, routing in mixtures.items()})


class StepLoad:
    """Balance loss and loads of one optimizer step, summed over its micro-batches and then over the ranks."""

    def __init__(self) -> None:
        self._balance_loss: Tensor | None = None
        self._loads: dict[int, Tensor] = {}

    def add(self, load: ExpertLoad | None, *, fraction: float) -> None:
        """Add a micro-batch.

        Args:
            fraction: this micro-batch's fraction of the step's sequences over all ranks.
        """
        if load is None:
            return
        balance_loss = load.balance_loss.detach() * fraction
        self._balance_loss = balance_loss if self._balance_loss is None else self._balance_loss + balance_loss
        for block, load_E in load.loads.items():
            self._loads[block] = self._loads[block] + load_E if block in self._loads else load_E

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of the step, averaged over the mixtures; empty for a model without any.

        ``moe/max_load`` is the largest load of an expert divided by the mean load, ``moe/load_entropy`` the entropy of
        the loads divided by that of equal loads. All ranks must call it: it sums the loads over them.
        """
        if self._balance_loss is None:
            return {}
        self._all_reduce(self._balance_loss)
        loads = self._loads.values()
        return {
            "loss/balance": self._balance_loss,
            "moe/max_load": torch.stack([load_E.max() / load_E.mean() for load_E in loads]).mean(),
            "moe/load_entropy": torch.stack([_evenness(load_E) for load_E in loads]).mean(),
        }

    def balance(self, layers: Sequence[FeedForward]) -> None:
        """Pass the loads of an applied step to the feed-forward layers, one per block."""
        for block, load_E in self._loads.items():
            layers[block].balance(load_E)

    def _all_reduce(self, balance_loss: Tensor) -> None:
        """Sum the balance loss and the loads over the ranks, in one message."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        message = torch.cat([balance_loss[None], *self._loads.values()])
        dist.all_reduce(message)
        self._balance_loss = message[0]
        loads = message[1:].split([len(load_E) for load_E in self._loads.values()])
        self._loads = dict(zip(self._loads, loads, strict=True))


def _evenness(load_E: Tensor) -> Tensor:
    """Entropy of the loads divided by the largest possible; 1 for a single expert."""
    if len(load_E) == 1:
        return torch.ones_like(load_E[0])
    part_E = load_E / load_E.sum()
    return -torch.special.xlogy(part_E, part_E).sum() / math.log(len(load_E))
