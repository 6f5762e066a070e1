"""Causal attention in blocks of queries, with its own backward pass.

Each block attends only to keys that one of its queries sees: up to the end of the block, from the start of the window,
and the sinks. Most scores that a mask would discard are never computed, and with a window neither time nor memory is
quadratic in the length. Plain matrix products and softmaxes beat the fused CPU kernel where its backward pass is slow
(benchmarks/attention_kernels.py), and allow a softcap, which the fused kernel does not.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class BlockConfig(NamedTuple):
    """Settings of :func:`block_attention`.

    Attributes:
        block: queries per block.
        window, sinks, softcap: see ``AttentionMask``.
        scale: factor on q·k.
        dropout_p: probability of dropping an attention weight.
    """

    block: int
    window: int
    sinks: int
    softcap: float
    scale: float
    dropout_p: float


class Span(NamedTuple):
    """One block: queries start … end−1 (rows of the scores) and the keys they see (columns)."""

    start: int
    end: int
    sinks: int
    """The first columns are keys 0 … sinks−1."""
    first: int
    last: int
    """The other columns are keys first … last−1."""
    hidden: int
    """Number of columns after the sinks that are outside the window of some query of the block."""
    diagonal: int
    """Of these, row r does not see columns 0 … r + diagonal."""


def block_attention(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, *, config: BlockConfig) -> Tensor:
    """softmax(mask(cap(scale · q·kᵀ)))·v of T queries, the last T of S positions, and S keys.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H, key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGSE: values.
        config: mask, scale and block size.

    Returns:
        (B, H, T, E)
    """
    out = _BlockAttention.apply(q_BHTD, k_BGSD, v_BGSE, config)
    assert isinstance(out, Tensor)
    return out


def block_spans(n_queries: int, n_keys: int, config: BlockConfig) -> list[Span]:
    """The blocks of ``n_queries`` queries, the last of ``n_keys`` positions, in order."""
    offset = n_keys - n_queries
    blocks = []
    for start in range(0, n_queries, config.block):
        end = min(start + config.block, n_queries)
        first = max(0, start + offset - config.window + 1) if config.window else 0
        if first <= config.sinks:  # sinks and window touch: one slice of keys, without a copy
            first = 0
        hidden, diagonal = 0, 0
        if config.window:
            column = max(first, config.sinks)
            hidden = max(0, end + offset - config.window - column)
            diagonal = start + offset - config.window - column
        blocks.append(Span(start, end, config.sinks if first else 0, first, end + offset, hidden, diagonal))
    return blocks


def saved_scores(n_queries: int, n_keys: int, config: BlockConfig) -> int:
    """Values per sequence and query head that the forward pass saves for the backward pass."""
    scores = sum((s.end - s.start) * (s.sinks + s.last - s.first) for s in block_spans(n_queries, n_keys, config))
    return scores * (1 + bool(config.softcap) + bool(config.dropout_p))


class _BlockAttention(torch.autograd.Function):
    """Autograd function for block attention.

    Key heads are folded into the batch, N = B·G, and the R = H/G query heads that share a key head form a dimension of
    their own: (N, R, T, D).
    """

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, config: BlockConfig) -> Tensor:
        (B, H, T, D), (G, S, E) = q_BHTD.shape, v_BGSE.shape[1:]
        q = q_BHTD.reshape(B * G, H // G, T, D)
        k, v = k_BGSD.reshape(B * G, S, D), v_BGSE.reshape(B * G, S, E)
        out_BTHE = q.new_empty(B, T, H, E)  # the layout that the output projection reads
        out = out_BTHE.view(B, T, G, H // G, E).permute(0, 2, 3, 1, 4)
        trains = any(ctx.needs_input_grad)
        future: Tensor | None = None
        past: dict[tuple[int, int, int], Tensor] = {}
        saved: list[Tensor] = []
        for span in block_spans(T, S, config):
            n = span.end - span.start
            rows = q[:, :, span.start : span.end].reshape(B * G, -1, D)
            keys, values = _columns(k, span), _columns(v, span)
            scores = rows.new_empty(B * G, rows.shape[1], keys.shape[1])
            scale = config.scale / (config.softcap or 1)
            # beta=0 ignores what is in scores: product and scaling in one pass
            torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
            if config.softcap:
                capped = scores.tanh_()
                if trains:
                    saved.append(capped)
                scores = capped * config.softcap if trains else capped.mul_(config.softcap)
            by_query = scores.view(B * G, H // G, n, -1)
            if future is None:  # the first block has the most queries: its mask serves all
                future = torch.full((n, n), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
            by_query[..., -n:] += future[:n, :n]  # only the block's own n keys can lie in a query's future
            if span.hidden:
                key = (n, span.hidden, span.diagonal)  # equal for all but the first and last blocks
                if key not in past:
                    outside = torch.full(key[:2], float("-inf"), dtype=q.dtype, device=q.device)
                    past[key] = outside.tril_(span.diagonal)
                by_query[..., config.sinks : config.sinks + span.hidden] += past[key]
            # aten's own functions: under autocast, torch.softmax would compute and save an fp32 copy
            weights = torch.ops.aten._softmax(scores, -1, False)
            if trains:
                saved.append(weights)
            if config.dropout_p:
                keep = torch.empty_like(weights).bernoulli_(1 - config.dropout_p).div_(1 - config.dropout_p)
                if trains:
                    saved.append(keep)
                weights = weights * keep
            out[:, :, :, span.start : span.end] = torch.bmm(weights, values).view(B, G, H // G, n, E)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.config, ctx.shapes = config, (q_BHTD.shape, k_BGSD.shape, v_BGSE.shape)
        return out_BTHE.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        config: BlockConfig = ctx.config
        N, R, T, D = q.shape
        grad = grad_BHTE.unflatten(1, (-1, R))  # (B, G, R, T, E)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Every block adds to the gradient of the sinks, and a bf16 sum would lose small terms.
        at_least_fp32 = torch.promote_types(q.dtype, torch.float32)
        dk_sinks, dv_sinks = (torch.zeros_like(t[:, : config.sinks], dtype=at_least_fp32) for t in (k, v))
        # In reverse, so that each block pops from ``saved`` what it appended last.
        for span in reversed(block_spans(T, k.shape[1], config)):
            n = span.end - span.start
            keep = saved.pop() if config.dropout_p else None
            weights = saved.pop()
            rows = q[:, :, span.start : span.end].reshape(N, -1, D)
            grad_rows = grad[:, :, :, span.start : span.end].reshape(N, R * n, -1)
            used = weights if keep is None else weights * keep
            _add_to_columns(dv, dv_sinks, span, used, grad_rows, 1.0)
            dscores = torch.bmm(grad_rows, _columns(v, span).transpose(1, 2))
            if keep is not None:
                dscores *= keep
            dscores = torch.ops.aten._softmax_backward_data(dscores, weights, -1, weights.dtype)
            if config.softcap:
                capped = saved.pop()
                dscores.addcmul_(dscores * capped, capped, value=-1)  # d tanh = 1 − tanh²
            _add_to_columns(dk, dk_sinks, span, dscores, rows, config.scale)
            drows = torch.bmm(dscores, _columns(k, span)).view(N, R, n, D)
            # not out=dq[…]: torch.compile refuses to write into a non-contiguous output
            dq[:, :, span.start : span.end] = drows.mul_(config.scale)
        dk[:, : config.sinks] += dk_sinks
        dv[:, : config.sinks] += dv_sinks
        q_shape, k_shape, v_shape = ctx.shapes
        return dq.view(q_shape), dk.view(k_shape), dv.view(v_shape), None


def _columns(x_NSD: Tensor, span: Span) -> Tensor:
    """The keys or values of a block: the columns of its scores."""
    rest = x_NSD[:, span.first : span.last]
    return torch.cat((x_NSD[:, : span.sinks], rest), dim=1) if span.sinks else rest


def _add_to_columns(
    total_NSD: Tensor, sinks_NSD: Tensor, span: Span, weights_NRS: Tensor, rows_NRD: Tensor, scale: float
) -> None:
    """Add scale · weightsᵀ·rows to the gradient of the keys or values of a block (see ``_columns``)."""
    sinks, rest = weights_NRS[..., : span.sinks], weights_NRS[..., span.sinks :]
    total_NSD[:, span.first : span.last].baddbmm_(rest.transpose(1, 2), rows_NRD, alpha=scale)
    if span.sinks:
        sinks_NSD.add_(torch.bmm(sinks.transpose(1, 2), rows_NRD), alpha=scale)
