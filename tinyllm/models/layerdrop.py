"""LayerDrop (Fan et al. 2020, https://arxiv.org/abs/1909.11556): training skips whole blocks at random.

Deeper blocks are skipped more often, by the linear rule of stochastic depth (Huang et al. 2016,
https://arxiv.org/abs/1603.09382). Evaluation runs every block, without rescaling its output.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def draw_active_blocks(p: float, n_layers: int, *, seed: int) -> list[bool]:
    """LayerDrop: which blocks run, given a seed.

    Block l = 0 … L−1 is dropped with probability p·l/(L−1), a single block with p. The draw depends only on the seed,
    so every rank and every resumed run makes the same one.
    """
    # A generator of its own, on the CPU: the draw is the same on every device and leaves dropout's stream alone.
    draws = torch.rand(n_layers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dropped = p * torch.linspace(0, 1, n_layers, dtype=torch.float64) if n_layers > 1 else torch.tensor([p])
    return (draws >= dropped).tolist()


def skip(x_BTC: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``x_BTC`` unchanged, with zero gradients (not missing ones) for the parameters of the skipped block.

    So every rank reduces the same gradients, and the optimizer decays a dropped block like any other.
    """
    skipped = _Skip.apply(x_BTC, *parameters)
    assert isinstance(skipped, Tensor)
    return skipped


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
