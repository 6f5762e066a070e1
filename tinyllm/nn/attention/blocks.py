"""Causal attention in lower-triangular blocks of queries, with a backward pass of its own.

The queries are split into a few blocks; block i attends only to the keys up to its own end, so most of the half of the
scores that the mask would throw away is never computed. It is plain matrix products and softmaxes, which on a CPU
beat the fused kernel wherever that one's backward pass is slow (see benchmarks/attention_kernels.py).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def block_attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, n_blocks: int, dropout_p: float) -> Tensor:
    """softmax(q·kᵀ/√D + causal mask)·v for as many queries as keys.

    Args:
        q_BHTD: queries.
        k_BGTD: keys; G divides H, key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGTD: values.
        n_blocks: how many blocks of queries.
        dropout_p: probability with which an attention weight is dropped.

    Returns:
        (B, H, T, D)
    """
    out = _BlockAttention.apply(q_BHTD, k_BGTD, v_BGTD, n_blocks, dropout_p)
    assert isinstance(out, Tensor)
    return out


class _BlockAttention(torch.autograd.Function):
    """Heads are folded into the batch, N = B·G; the R = H/G queries that share a key are rows: (N, R, T, D)."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, n_blocks: int, dropout_p: float) -> Tensor:
        (B, H, T, D), G = q_BHTD.shape, k_BGTD.shape[1]
        q = q_BHTD.reshape(B * G, H // G, T, D)
        k, v = k_BGTD.reshape(B * G, T, D), v_BGTD.reshape(B * G, T, D)
        out_BTHD = q.new_empty(B, T, H, D)  # in the order that the projection behind attention reads
        out = out_BTHD.view(B, T, G, H // G, D).permute(0, 2, 3, 1, 4)
        size = -(-T // n_blocks)
        mask = torch.full((size, size), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
        kept: list[Tensor] = []
        for start in range(0, T, size):
            end = min(start + size, T)
            rows = q[:, :, start:end].reshape(B * G, -1, D)
            scores = rows.new_empty(B * G, rows.shape[1], end)
            torch.baddbmm(scores, rows, k[:, :end].transpose(1, 2), beta=0, alpha=D**-0.5, out=scores)
            diagonal = scores.view(B * G, H // G, end - start, end)[..., start:]
            diagonal += mask[: end - start, : end - start]
            weights = torch.ops.aten._softmax(scores, -1, False)
            kept.append(weights)
            if dropout_p:
                keep = torch.empty_like(weights).bernoulli_(1 - dropout_p).div_(1 - dropout_p)
                kept.append(keep)
                weights = weights * keep
            out[:, :, :, start:end] = torch.bmm(weights, v[:, :end]).view(B, G, H // G, -1, D)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.size, ctx.dropout_p, ctx.shapes = size, dropout_p, (q_BHTD.shape, k_BGTD.shape)
        return out_BTHD.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        N, R, T, D = q.shape
        grad = grad_BHTD.unflatten(1, (-1, R))  # (B, G, R, T, D)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        # The last block first: it reaches every key, so it can fill dk and dv where the others add.
        last = (T - 1) // ctx.size * ctx.size
        for start in range(last, -1, -ctx.size):
            end, beta = min(start + ctx.size, T), float(start != last)
            keep = kept.pop() if ctx.dropout_p else None
            weights = kept.pop()
            rows = q[:, :, start:end].reshape(N, -1, D)
            grad_rows = grad[:, :, :, start:end].reshape(N, -1, D)
            used = weights if keep is None else weights * keep
            dv[:, :end].baddbmm_(used.transpose(1, 2), grad_rows, beta=beta)
            dweights = torch.bmm(grad_rows, v[:, :end].transpose(1, 2))
            if keep is not None:
                dweights *= keep
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dk[:, :end].baddbmm_(dscores.transpose(1, 2), rows, beta=beta, alpha=D**-0.5)
            drows = torch.bmm(dscores, k[:, :end]).view(N, R, -1, D)
            torch.mul(drows, D**-0.5, out=dq[:, :, start:end])
        q_shape, k_shape = ctx.shapes
        return dq.view(q_shape), dk.view(k_shape), dv.view(k_shape), None, None
