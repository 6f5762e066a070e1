"""The loss of next-token prediction."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyllm.nn.loss import HeadLoss, head_loss

PARTS = ("train/loss", "loss/smoothing", "loss/z")


class Losses(NamedTuple):
    """What a micro-batch adds to the loss, and how the mixtures of experts spread its tokens."""

    head: HeadLoss
    """Of the targets that are not −100, summed: cross-entropy and what regularises it."""
    balance: Tensor | None
    """Balance loss with its coefficient, averaged over sequences and over the mixtures that ran; None: none did."""
    loads: dict[int, Tensor]
    """Tokens per routed expert, by the block of the mixture."""

    def to_minimise(self, *, n_tokens: int, share: float) -> Tensor:
        """The micro-batch's part in the loss of an optimizer step.

        Args:
            n_tokens: targets in the whole step, so that the sum over micro-batches is the mean over all tokens.
            share: the micro-batch's part of the step's sequences, those of all ranks.
        """
        loss = self.head.total / max(n_tokens, 1)  # 0, and not 0/0, where no target counts
        return loss if self.balance is None else loss + self.balance * share

    def spoilt(self) -> "Losses":
        """The same with a loss that is no number, for ``tinyllm.utils.fault_injection``."""
        return self._replace(head=HeadLoss(*(part * math.nan for part in self.head)))


class Objective(nn.Module):
    """What training minimises, of one micro-batch.

    Model and loss are one module, so that whatever wraps it (DDP, compile) sees one forward pass.

    Args:
        model: its ``run`` maps ids (B, T) to hidden states (B, T, C) and how each block routed; it has a
            ``head_weight`` (V, C).
        chunk_tokens: tokens per chunk of head and loss; None: a measured rule; 0: no chunks.
        label_smoothing, z_loss: see :func:`tinyllm.nn.loss.head_loss`.
    """

    def __init__(
        self, model: nn.Module, *, chunk_tokens: int | None, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.chunk_tokens, self.label_smoothing, self.z_loss = chunk_tokens, label_smoothing, z_loss

    def names(self) -> list[str]:
        """The metrics of the parts of the head's loss, without those of what is off."""
        return [name for name, on in zip(PARTS, (True, self.label_smoothing, self.z_loss), strict=True) if on]

    def named(self, parts: Tensor) -> dict[str, Tensor]:
        """The parts of the head's loss, each a mean over tokens, by :meth:`names`."""
        return {name: part for name, part in zip(PARTS, parts.unbind(), strict=True) if name in self.names()}

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, kept: Sequence[bool] | None = None) -> Losses:
        """The losses of predicting the targets; ``kept``: the blocks to pass through, None: all."""
        hidden_BTC, routings = self.model.run(inputs_BT, kept=kept)
        hidden_ND = hidden_BTC.flatten(0, 1)
        chunk = len(hidden_ND) if self.chunk_tokens == 0 else self.chunk_tokens
        head = head_loss(
            hidden_ND,
            self.model.head_weight,
            targets_BT.flatten(),
            chunk_tokens=chunk,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        mixed = {block: routing for block, routing in enumerate(routings) if routing is not None}
        balance = torch.stack([routing.loss for routing in mixed.values()]).mean() if mixed else None
        return Losses(head, balance, {block: routing.load_E for block, routing in mixed.items()})
