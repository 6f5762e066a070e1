"""AdamW, fused where possible."""

import inspect
from typing import Any

import torch

from tinyllm.optim.base import check_betas, check_not_negative, declares_state_bytes, two_moments_bytes

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})
"""Devices with a fused kernel, which reads and writes weights, gradients and moments once."""


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` whose step does not load torch's compiler.

    The original imports ``torch._dynamo`` (1 s) at its first step, to end a graph that a compiler may be capturing.
    tinyllm compiles blocks and never the optimizer.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


@declares_state_bytes(two_moments_bytes)
def adamw(
    params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), fused if all devices support it.

    Args:
        params: parameter groups; a group's own ``weight_decay`` overrides the argument.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """
    check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    check_betas(betas)
    devices = {parameter.device.type for group in params for parameter in group["params"]}
    return AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=devices <= FUSED_DEVICES)
