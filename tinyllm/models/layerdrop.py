"""LayerDrop (Fan et al. 2020): in training, whole blocks are left out at random, the deeper the likelier."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def draw_active_blocks(p: float, n_layers: int, *, seed: int) -> list[bool] | None:
    """Which blocks one micro-batch passes through; None: all of them, always.

    Block l = 0 … L−1 is dropped with probability p·l/(L−1), a single block with p. The decision depends on the seed
    alone, so every rank and every recomputation can make the same one.
    """
    if not p:
        return None
    draws = torch.rand(n_layers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dropped = p * torch.linspace(0, 1, n_layers, dtype=torch.float64) if n_layers > 1 else torch.tensor([p])
    return (draws >= dropped).tolist()


def skip(x_BTC: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``x_BTC`` as it is; the parameters of the block that it does not pass get gradients of zero, not none.

    So every rank reduces the same gradients, and an optimizer decays a dropped block like the others.
    """
    passed = _Skip.apply(x_BTC, *parameters)
    assert isinstance(passed, Tensor)
    return passed


class _Skip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        zeros = (torch.zeros_like(p) if need else None for p, need in zip(ctx.saved_tensors, needed, strict=True))
        return grad, *zeros
