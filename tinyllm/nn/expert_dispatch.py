"""Dropless dispatch of tokens to experts and back, by gathers only.

No scatter-add, forward or backward: on a GPU it would add to a row in an order that varies from run to run.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Dispatch:
    """The (token, expert) pairs of one forward pass, as rows sorted by expert.

    Letters: N tokens, K experts per token, M rows: one per pair, plus padding.

    Args:
        chosen_NK: experts of each token.
        load_E: number of tokens of each expert.
        block: the rows of each expert are padded to a multiple of this, with copies of the first token of weight 0.
    """

    rows_E: Tensor
    """Number of rows of each expert, padding included."""

    def __init__(self, chosen_NK: Tensor, load_E: Tensor, *, block: int) -> None:
        n_tokens, n_choices = chosen_NK.shape
        # stable: the rows of an expert stay in token order, so that two runs sum in the same order
        expert_M, choice_M = chosen_NK.flatten().sort(stable=True)
        load_E = load_E.to(torch.int64)
        self.rows_E = (load_E + block - 1) // block * block
        padding_E = self.rows_E - load_E
        row_M = torch.arange(len(choice_M), device=chosen_NK.device) + (padding_E.cumsum(0) - padding_E)[expert_M]
        self._row_NK = torch.empty_like(row_M).scatter_(0, choice_M, row_M).view_as(chosen_NK)
        # Without padding the number of rows is known beforehand; reading the sum would wait for the GPU.
        n_rows = len(choice_M) if block == 1 else int(self.rows_E.sum())
        token_NK = torch.arange(n_tokens, device=chosen_NK.device)[:, None].expand(-1, n_choices)
        self._token_M = row_M.new_zeros(n_rows).scatter_(0, self._row_NK.flatten(), token_NK.flatten())

    def gather(self, x_NC: Tensor) -> Tensor:
        """The tokens (N, C) in row order, (M, C)."""
        x_MC = _Gather.apply(x_NC, self._token_M, self._row_NK)
        assert isinstance(x_MC, Tensor)
        return x_MC

    def combine(self, y_MC: Tensor, gate_NK: Tensor) -> Tensor:
        """Sum each token's rows weighted by its gates: (M, C) → (N, C), in the dtype of ``y_MC``."""
        y_NC = _Combine.apply(y_MC, gate_NK.to(y_MC.dtype), self._token_M, self._row_NK)
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
    # embedding_bag gathers, weights and sums in one pass, several times faster than separate operations
    @staticmethod
    def forward(ctx: Any, y_MC: Tensor, gate_NK: Tensor, token_M: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_MC, gate_NK, token_M, row_NK)
        return F.embedding_bag(row_NK, y_MC, per_sample_weights=gate_NK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NC: Tensor) -> tuple[Tensor | None, ...]:
        y_MC, gate_NK, token_M, row_NK = ctx.saved_tensors
        # Padding rows are no token's choice: their gate stays 0, and so does their gradient.
        gate_M = gate_NK.new_zeros(len(token_M)).scatter_(0, row_NK.flatten(), gate_NK.flatten())
        dy_MC = F.embedding_bag(token_M[:, None], dy_NC, per_sample_weights=gate_M[:, None], mode="sum")
        dgate_M = torch.linalg.vecdot(dy_NC.index_select(0, token_M), y_MC)
        return dy_MC, dgate_M[row_NK], None, None
