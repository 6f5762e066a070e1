"""What an optimizer keeps of each parameter, so that a saved state of anything else is refused."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Shapes = dict[str, tuple[int, ...]]
ADAMW = ("exp_avg", "exp_avg_sq")
QUANTISED_BLOCK = 256
"""Weights that share a scale in bitsandbytes' moments of 8 bits, and values that 8 bits can mean."""


def state_shapes(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, saved: dict[str, Any]
) -> Shapes | None:
    """The shape of each entry that ``optimizer`` keeps of a parameter, () of a number; None: it does not say.

    Args:
        group: the parameter's.
        saved: what was saved for it; bitsandbytes decides by size and version which moments have 8 bits.
    """
    shape = tuple(parameter.shape)
    if hasattr(optimizer, "state_shapes"):
        shapes: Shapes = optimizer.state_shapes(group, shape)
        return shapes
    if isinstance(optimizer, torch.optim.AdamW):
        return adamw_shapes(shape)
    if type(optimizer).__mro__[1].__module__.startswith("bitsandbytes"):
        found: Shapes = {"step": (), "state1": shape, "state2": shape}
        for number in "12":
            moment = saved.get(f"state{number}")
            if isinstance(moment, Tensor) and moment.dtype == torch.uint8:
                blocks = -(-parameter.numel() // QUANTISED_BLOCK)
                found |= {f"qmap{number}": (QUANTISED_BLOCK,), f"absmax{number}": (blocks,)}
        return found
    return None


def adamw_shapes(shape: tuple[int, ...]) -> Shapes:
    """The same of torch's AdamW."""
    return {"step": (), **dict.fromkeys(ADAMW, shape)}
