"""AdamW with the implementation that the device runs fastest."""

from typing import Any

import torch

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})


def adamw(
    params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), fused where every tensor's device has it.

    Args:
        params: parameter groups; a group's own ``weight_decay`` wins.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name}={value} is negative: {name} must be at least 0")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={list(betas)} are out of range: each must be at least 0 and below 1")
    devices = {parameter.device.type for group in params for parameter in group["params"]}
    return torch.optim.AdamW(
        params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=devices <= FUSED_DEVICES
    )
