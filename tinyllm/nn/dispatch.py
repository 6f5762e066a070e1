"""Tokens to their experts and back, by permutations: no pass adds into rows that others write, nothing is dropped."""

from typing import Any

import torch
import torch.nn.functional as F
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
        self.expert_M, self._choice_M = chosen_NK.flatten().sort(stable=True)
        self._token_M = self._choice_M // chosen_NK.shape[1]
        rows = torch.arange(len(self._choice_M), device=chosen_NK.device)
        self._row_NK = torch.empty_like(rows).scatter_(0, self._choice_M, rows).view_as(chosen_NK)

    def gather(self, x_NC: Tensor) -> Tensor:
        """The tokens (M, C) that the rows stand for."""
        x_MC = _Gather.apply(x_NC, self._token_M, self._row_NK)
        assert isinstance(x_MC, Tensor)
        return x_MC

    def combine(self, y_MC: Tensor, gate_NK: Tensor) -> Tensor:
        """The sum (N, C) over each token's rows, weighted by its gates, in the dtype of ``y_MC``."""
        y_NC = _Combine.apply(y_MC, gate_NK.to(y_MC.dtype), self._choice_M, self._token_M, self._row_NK)
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
        return F.embedding_bag(row_NK, dx_MC, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    # embedding_bag reads, weighs and adds the rows in one pass, several times faster than doing one after the other
    @staticmethod
    def forward(ctx: Any, y_MC: Tensor, gate_NK: Tensor, choice_M: Tensor, token_M: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_MC, gate_NK.flatten()[choice_M], token_M, row_NK)
        return F.embedding_bag(row_NK, y_MC, per_sample_weights=gate_NK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NC: Tensor) -> tuple[Tensor | None, ...]:
        y_MC, gate_M, token_M, row_NK = ctx.saved_tensors
        dy_MC = F.embedding_bag(token_M[:, None], dy_NC, per_sample_weights=gate_M[:, None], mode="sum")
        dgate_M = torch.linalg.vecdot(dy_NC.index_select(0, token_M), y_MC)
        return dy_MC, dgate_M[row_NK], None, None, None
