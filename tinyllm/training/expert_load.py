"""How the mixtures of experts of a model spread the tokens of one optimizer step, and what follows from it."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm.nn.feedforward import FeedForward
from tinyllm.training.objectives.next_token import Losses


class ExpertLoad:
    """Balance loss and loads of one optimizer step, over its micro-batches and then over the ranks."""

    def __init__(self) -> None:
        self._balance: Tensor | None = None
        self._loads: dict[int, Tensor] = {}

    def add(self, losses: Losses, *, share: float) -> None:
        """Count a micro-batch that has ``share`` of the step's sequences, those of all ranks."""
        if losses.balance is None:
            return
        balance = losses.balance.detach() * share
        self._balance = balance if self._balance is None else self._balance + balance
        for block, load_E in losses.loads.items():
            self._loads[block] = self._loads[block] + load_E if block in self._loads else load_E

    def figures(self) -> dict[str, Tensor]:
        """The metrics of the step, averaged over the mixtures; none for a model without.

        ``moe/max_load`` is the largest load of an expert in units of the mean; ``moe/load_entropy`` the entropy of the
        loads in units of that of equal ones. From here on the loads are those of all ranks, which must all call it.
        """
        if self._balance is None:
            return {}
        self._reduce()
        loads = self._loads.values()
        return {
            "loss/balance": self._balance,
            "moe/max_load": torch.stack([load_E.max() / load_E.mean() for load_E in loads]).mean(),
            "moe/load_entropy": torch.stack([_evenness(load_E) for load_E in loads]).mean(),
        }

    def balance(self, layers: Sequence[FeedForward]) -> None:
        """Tell the layers, one per block, their loads of a step that was taken."""
        for block, load_E in self._loads.items():
            layers[block].balance(load_E)

    def _reduce(self) -> None:
        """Sum the loads and the balance loss over the ranks, in one message."""
        if self._balance is None or not (dist.is_available() and dist.is_initialized()):
            return
        loads = list(self._loads.values())
        message = torch.cat([self._balance[None], *loads])
        dist.all_reduce(message)
        self._balance = message[0]
        parts = message[1:].split([len(load_E) for load_E in loads])
        self._loads = dict(zip(self._loads, parts, strict=True))


def _evenness(load_E: Tensor) -> Tensor:
    """The entropy of the loads divided by the largest that it can be; 1 for a single expert."""
    if len(load_E) == 1:
        return torch.ones_like(load_E[0])
    part_E = load_E / load_E.sum()
    return -torch.special.xlogy(part_E, part_E).sum() / math.log(len(load_E))
