"""How much memory an optimizer keeps, without a step of it."""

from typing import Any

from torch.optim import Optimizer

TWO_MOMENTS = 8
"""Bytes a weight of two moments in fp32."""


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state once it has taken a step.

    An optimizer says so itself, by a method of this name; one that does not is taken to keep two moments in fp32, as
    most do.
    """
    own: Any = optimizer
    if hasattr(own, "state_bytes"):
        return int(own.state_bytes())
    return TWO_MOMENTS * sum(p.numel() for group in optimizer.param_groups for p in group["params"])
