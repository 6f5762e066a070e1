"""The training loss, and with which numbers it is computed."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tinyllm.nn.loss import linear_cross_entropy

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """Sum of the cross-entropy over the predicted tokens of a micro-batch.

    Model and loss are one module, so that whatever wraps it (DDP, compile) sees one forward pass.

    Args:
        model: maps ids (B, T) to hidden states (B, T, C) and has a ``head_weight`` (V, C).
        chunk_tokens: tokens per chunk of head and loss; None: a measured rule; 0: no chunks.
    """

    def __init__(self, model: nn.Module, *, chunk_tokens: int | None) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Nats summed over the targets that are not −100, a scalar in fp32."""
        hidden_ND = self.model(inputs_BT).flatten(0, 1)
        weight = self.model.head_weight
        assert isinstance(weight, Tensor)
        chunk = len(hidden_ND) if self.chunk_tokens == 0 else self.chunk_tokens
        return linear_cross_entropy(hidden_ND, weight, targets_BT.flatten(), chunk_tokens=chunk)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs at ``fp32``, ``bf16`` or ``fp16``."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])
