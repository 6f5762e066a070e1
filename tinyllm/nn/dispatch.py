"""Tokens to their experts and back, by permutations: no pass adds into rows that others write, nothing is dropped."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Dispatch:
    """The choices of one forward pass in the order of the experts.

    Letters: N tokens, K choices per token, M = N·K rows, one for each choice.

    Args:
        chosen_NK: the experts of each token.
    """

    expert_M: Tensor
    """The expert of each row, ascending."""

    def __init__(self, chosen_NK: Tensor) -> None:
        self.expert_M, choice_M = chosen_NK.flatten().sort(stable=True)
        self._token_M = choice_M // chosen_NK.shape[1]
        self._row_NK = torch.empty_like(choice_M).scatter_(
            0, choice_M, torch.arange(len(choice_M), device=choice_M.device)
        )
        self._row_NK = self._row_NK.view_as(chosen_NK)
        self._choice_M = choice_M

    def gather(self, x_NC: Tensor) -> Tensor:
        """The tokens (M, C) that the rows stand for."""
        x_MC = _Gather.apply(x_NC, self._token_M, self._row_NK)
        assert isinstance(x_MC, Tensor)
        return x_MC

    def combine(self, y_MC: Tensor, gate_NK: Tensor) -> Tensor:
        """The sum (N, C) over each token's rows, weighted by its gates, in the dtype of ``y_MC``."""
        y_NC = _Combine.apply(y_MC, gate_NK, self._token_M, self._row_NK, self._choice_M)
        assert isinstance(y_NC, Tensor)
        return y_NC


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, token_M: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return x_NC.index_select(0, token_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_MC: Tensor) -> tuple[Tensor | None, ...]:
        (row_NK,) = ctx.saved_tensors
        return _sum(dx_MC, row_NK), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MC: Tensor, gate_NK: Tensor, token_M: Tensor, row_NK: Tensor, choice_M: Tensor) -> Tensor:
        gate_M1 = gate_NK.flatten()[choice_M, None]
        ctx.save_for_backward(y_MC, gate_M1, token_M, row_NK)
        return _sum(y_MC, row_NK, gate_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NC: Tensor) -> tuple[Tensor | None, ...]:
        y_MC, gate_M1, token_M, row_NK = ctx.saved_tensors
        dy_MC = dy_NC.index_select(0, token_M)
        dgate_M = (dy_MC * y_MC).sum(1, dtype=gate_M1.dtype)
        return (dy_MC * gate_M1).to(y_MC.dtype), dgate_M[row_NK], None, None, None


def _sum(rows_MC: Tensor, row_NK: Tensor, weight_NK: Tensor | None = None) -> Tensor:
    """The (weighted) sum over the rows of each token, in fp32 and rounded once."""
    total = None
    for k in range(row_NK.shape[1]):
        part = rows_MC.index_select(0, row_NK[:, k])
        if weight_NK is not None:
            part = part * weight_NK[:, k, None]
        total = part if total is None else total + part
    assert total is not None
    return total.to(rows_MC.dtype)
