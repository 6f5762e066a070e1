"""Whether tensors hold NaN or infinity."""

from collections.abc import Iterable

import torch
from torch import Tensor


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first floating-point tensor with a NaN or an infinity in the part that this process has; None: all
    are finite. The device is waited for once.
    """
    floating = [(name, _local(tensor.detach())) for name, tensor in named if tensor.is_floating_point()]
    if not floating:
        return None
    flags = torch.stack([torch.isfinite(tensor).all() for _, tensor in floating]).tolist()
    return next((name for (name, _), finite in zip(floating, flags, strict=True) if not finite), None)


def _local(tensor: Tensor) -> Tensor:
    """Of a sharded tensor (torch's DTensor) the part that is here."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
