"""Lion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tinyllm.optim.base import Shapes, check_betas, check_not_negative, declares_state_bytes, one_moment_bytes
from tinyllm.utils.tensors import local_tensor


@declares_state_bytes(one_moment_bytes)
class Lion(Optimizer):
    """Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2): the sign of an interpolated momentum.

    u = sign(β1·m + (1−β1)·g); w ← w − lr·(u + weight_decay·w); m ← β2·m + (1−β2)·g. The state is m.

    Args:
        params: parameter groups; a group's own ``weight_decay`` overrides the argument.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """

    def __init__(
        self, params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        check_not_negative(lr=lr, weight_decay=weight_decay)
        check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            # A weight without a gradient is left alone, decay included, as in torch's optimizers.
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [local_tensor(p.grad) for p in weights]
            momenta = [local_tensor(self._momentum(p)) for p in weights]
            weights = [local_tensor(p) for p in weights]
            # foreach kernels: one launch for all weights of the group, on this rank's shards (the sign is elementwise)
            (beta1, beta2), lr = group["betas"], group["lr"]
            signs = torch._foreach_lerp(momenta, gradients, 1 - beta1)
            torch._foreach_sign_(signs)
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, signs, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)

    def state_shapes(self, group: dict[str, Any], shape: tuple[int, ...]) -> Shapes:
        """The state kept for a parameter."""
        return {"m": shape}

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["m"] = torch.zeros_like(weight)
        momentum: Tensor = state["m"]
        return momentum
