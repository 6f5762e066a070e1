"""Cross-entropy of a linear head, in chunks of tokens, so that all logits never exist at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinyllm.nn.precision import compute_dtype

IGNORE = -100
"""A target that is not counted."""

CHUNK_BYTES = 64 * 2**20
"""Size of the logits of one chunk when it is chosen here; larger ones are no faster and take memory."""

ONE_PASS_DEVICES = ("cpu",)
"""Where softmax in place, one kernel, beats logsumexp and exp one after the other."""

ALIGN = 32
"""Vocabularies are padded to this multiple where the head is copied to a shorter dtype anyway: rows of logits that
begin on a cache line make the products up to a third faster (benchmarks/attention_kernels.py --head)."""


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Sum over the targets that are not −100 of −log softmax(hidden · weightᵀ)[target].

    The gradient is computed together with the value, chunk by chunk, so the logits are made once and dropped.
    Under autocast the products are in its dtype; the loss and the gradient of the weight are summed in fp32.

    Args:
        hidden_ND: hidden states.
        weight_VD: the head.
        targets_N: ids in 0 … V−1, or −100 for "not counted".
        chunk_tokens: tokens per chunk; None: as many as give ``CHUNK_BYTES`` of logits.

    Returns:
        A scalar in fp32, in nats.
    """
    dtype = compute_dtype(hidden_ND.device, hidden_ND.dtype)
    n_tokens, per_token = hidden_ND.shape[0], weight_VD.shape[0] * dtype.itemsize
    at_most = max(1, CHUNK_BYTES // per_token) if chunk_tokens is None else chunk_tokens
    n_chunks = max(1, -(-n_tokens // at_most))
    size = max(1, -(-n_tokens // n_chunks))
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        loss = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype, size)
        assert isinstance(loss, Tensor)
        return loss
    weight = weight_VD.to(dtype)
    total = torch.zeros((), device=hidden_ND.device)
    for hidden, targets in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        logits = F.linear(hidden.to(dtype), weight).float()
        total += F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, size: int
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss, ctx.dhidden, ctx.dweight = _value_and_gradients(hidden_ND, weight_VD, targets_N, dtype, size)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.dweight is None:
            raise RuntimeError("the gradients of linear_cross_entropy are used up by the first backward pass")
        hidden_dtype, weight_dtype = ctx.dtypes
        dhidden, dweight = ctx.dhidden.mul_(grad).to(hidden_dtype), ctx.dweight.mul_(grad).to(weight_dtype)
        ctx.dhidden = ctx.dweight = None
        return dhidden, dweight, None, None, None


def _value_and_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its derivatives: of the hidden states in ``dtype``, of the weight in fp32."""
    counted = targets_N != IGNORE
    targets_N1 = targets_N.where(counted, 0)[:, None]
    # Tokens that are not counted have a hidden state of zero, so they add nothing to the weight's gradient.
    hidden = hidden_ND.to(dtype) * counted[:, None]
    weight, n_words = weight_VD, weight_VD.shape[0]
    if dtype != weight_VD.dtype:
        weight = hidden.new_zeros(-(-n_words // ALIGN) * ALIGN, weight_VD.shape[1])
        weight[:n_words] = weight_VD
    dhidden, dweight = torch.empty_like(hidden), None
    losses = torch.empty(hidden.shape[0], device=hidden.device)
    for start in range(0, hidden.shape[0], size):
        chunk = slice(start, start + size)
        logits = hidden[chunk] @ weight.t()
        logits[:, n_words:] = float("-inf")
        losses[chunk], probabilities = _losses_and_probabilities(logits, targets_N1[chunk])
        lost = losses[chunk].isinf().nonzero().squeeze(1) + start
        if len(lost):  # the probability of the target was too small for the dtype
            logits = hidden[lost] @ weight[:n_words].t()
            losses[lost] = F.cross_entropy(logits.float(), targets_N1[lost, 0], reduction="none")
        # d loss / d logits = softmax − one-hot
        probabilities.scatter_(1, targets_N1[chunk], probabilities.gather(1, targets_N1[chunk]) - 1)
        torch.mm(probabilities, weight, out=dhidden[chunk])
        part = probabilities.t() @ hidden[chunk]
        dweight = part.float() if dweight is None else dweight.add_(part)
    assert dweight is not None
    return (losses * counted).sum(), dhidden.mul_(counted[:, None]), dweight[:n_words]


def _losses_and_probabilities(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax of the targets (N,) in fp32 and the softmax (N, V) in the logits' dtype; uses the logits up."""
    if logits_NV.device.type not in ONE_PASS_DEVICES:
        scores = logits_NV.float()
        normaliser = scores.logsumexp(-1, keepdim=True)
        losses = normaliser - scores.gather(1, targets_N1)
        return losses.squeeze(1), scores.sub_(normaliser).exp_().to(logits_NV.dtype)
    # One pass over the chunk instead of five. The kernel computes in fp32 and rounds its result, so the loss of a token
    # is off by no more than the rounding of its probability (0.002 nats in bf16), without bias.
    torch._softmax(logits_NV, -1, False, out=logits_NV)
    return -logits_NV.gather(1, targets_N1).squeeze(1).float().log(), logits_NV
