"""Cross-entropy of the language-model head in chunks of tokens, so that the logits never exist all at once.

With a large vocabulary the logits decide time and memory: at the ``tiny`` shape with 32,000 entries, chunks with the
gradient computed in the forward pass take 446 ms, a compiled loss function 2,685 ms (experiments/LOG.md).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinyllm.nn.train_kernels import TrainKernels
from tinyllm.utils.tensors import autocast_dtype

IGNORE = -100
"""Target id of tokens that do not count towards the loss."""

CHUNK_BYTES = {"cpu": 64 * 2**20}
"""Default size of a chunk's logits by device; chunks of 128 MiB are no faster on a CPU (experiments/LOG.md)."""

ACCELERATOR_CHUNK_BYTES = 512 * 2**20
"""The same on any other device: each chunk reads and writes the fp32 gradient of the whole head, 300 MB at gpt2's size,
which must be little beside its products."""

ONE_PASS_DEVICES = ("cpu",)
"""Devices where the losses come from an in-place softmax, and those that it loses are computed again."""

ALIGN = 32
"""The head's rows are padded to a multiple of this where it is copied to a shorter dtype anyway. Rows of logits then
start on a cache line, and products are up to a third faster (benchmarks/attention_kernels.py --head)."""


class LMHeadLoss(NamedTuple):
    """The loss of the language-model head in nats, summed over the counted targets; fp32 scalars.

    Attributes:
        total: the sum of the other three, to be minimized; the only one with a gradient.
        nats: plain cross-entropy.
        smoothing: the part that label smoothing adds.
        z: the part that the z-loss adds.
    """

    total: Tensor
    nats: Tensor
    smoothing: Tensor
    z: Tensor


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target] over targets other than −100; see :func:`lm_head_loss`."""
    return lm_head_loss(hidden_ND, weight_VD, targets_N, chunk_tokens=chunk_tokens).total


def lm_head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    chunk_tokens: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    kernels: TrainKernels | None = None,
) -> LMHeadLoss:
    """Cross-entropy of the language-model head, with optional label smoothing and z-loss.

    Value and gradient are computed together, chunk by chunk, so the logits are computed once and freed. Under autocast
    the products are in its dtype; the loss and the gradient of the weight are accumulated in fp32.

    Args:
        hidden_ND: hidden states.
        weight_VD: matrix of the head.
        targets_N: ids in 0 … V−1, or −100 (``IGNORE``).
        chunk_tokens: tokens per chunk; None: as many as fit ``CHUNK_BYTES`` of logits.
        label_smoothing: ε; the target is (1−ε)·one-hot + ε/V (Szegedy et al. 2016, §7).
        z_loss: factor on logsumexp(logits)² (PaLM, Chowdhery et al. 2022, §5).
        kernels: used with a gradient where they take the logits.
    """
    dtype = autocast_dtype(hidden_ND.device, hidden_ND.dtype)
    n_tokens, per_token = hidden_ND.shape[0], weight_VD.shape[0] * dtype.itemsize
    at_most = _tokens_of_a_chunk(hidden_ND.device, per_token) if chunk_tokens is None else chunk_tokens
    n_chunks = max(1, -(-n_tokens // at_most))
    size = max(1, -(-n_tokens // n_chunks))  # equal chunks, rather than full ones and a short last one
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        settings = _Settings(dtype, size, label_smoothing, z_loss, kernels)
        return LMHeadLoss(*_LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, settings))
    weight = weight_VD.to(dtype)
    parts = torch.zeros(3, device=hidden_ND.device)
    for hidden, targets in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        logits = F.linear(hidden.to(dtype), weight).float()
        parts[0] += F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        counted = targets != IGNORE
        if label_smoothing:
            target_logits = logits.gather(1, targets.where(counted, 0)[:, None]).squeeze(1)
            parts[1] += label_smoothing * ((target_logits - logits.mean(-1)) * counted).sum()
        if z_loss:
            parts[2] += z_loss * (logits.logsumexp(-1).square() * counted).sum()
    return LMHeadLoss(parts.sum(), *parts.unbind())


def _tokens_of_a_chunk(device: torch.device, bytes_per_token: int) -> int:
    """Tokens whose logits fit into a chunk of the default size."""
    return max(1, CHUNK_BYTES.get(device.type, ACCELERATOR_CHUNK_BYTES) // bytes_per_token)


class _Settings(NamedTuple):
    dtype: torch.dtype
    size: int  # tokens per chunk
    smoothing: float
    z_loss: float
    kernels: TrainKernels | None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, settings: _Settings
    ) -> tuple[Tensor, ...]:
        # The dtype is settled already, and autocast would cast the weight again for every chunk.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            parts, ctx.dhidden, ctx.dweight = _value_and_gradients(
                hidden_ND, weight_VD, targets_N, settings, is_frozen=not ctx.needs_input_grad[1]
            )
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(*parts)
        return sum(parts[1:], parts[0].clone()), *parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.dhidden is None:
            raise RuntimeError(
                "linear_cross_entropy supports a single backward pass: its gradients are freed by the first"
            )
        hidden_dtype, weight_dtype = ctx.dtypes
        dhidden = ctx.dhidden.mul_(grad).to(hidden_dtype)
        dweight = None if ctx.dweight is None else ctx.dweight.mul_(grad).to(weight_dtype)
        ctx.dhidden = ctx.dweight = None
        return dhidden, dweight, None, None


def _value_and_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, settings: _Settings, *, is_frozen: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor | None]:
    """The parts of the loss, and the gradients of the hidden states (in ``dtype``) and of the weight (in fp32).

    Args:
        is_frozen: the weight needs no gradient, which is a third of the work.
    """
    dtype, size, smoothing, z_loss, kernels = settings
    counted = targets_N != IGNORE
    targets_N1 = targets_N.where(counted, 0)[:, None]  # gather needs a valid index; these losses are zeroed below
    hidden = hidden_ND.to(dtype)
    # Hidden states of ignored tokens are zeroed, so that they do not contribute to the gradient of the weight.
    masks = hidden.device.type not in ONE_PASS_DEVICES or not bool(counted.all())
    if masks:
        hidden = hidden * counted[:, None]
    weight, n_vocab = weight_VD, weight_VD.shape[0]
    if dtype != weight_VD.dtype:
        weight = hidden.new_zeros(-(-n_vocab // ALIGN) * ALIGN, weight_VD.shape[1])
        weight[:n_vocab] = weight_VD
    product = None if kernels is None else kernels.head_product(weight_VD, dtype)
    dhidden, dweight = torch.empty_like(hidden), None
    losses = torch.zeros(3, hidden.shape[0], device=hidden.device)
    rows_N = torch.arange(size, device=hidden.device)
    for start in range(0, hidden.shape[0], size):
        chunk = slice(start, start + size)
        logits = hidden[chunk] @ weight.t() if product is None else product(hidden[chunk])
        if smoothing or z_loss:
            losses[:, chunk], gradient = _regularized(logits, targets_N1[chunk], n_vocab, smoothing, z_loss)
        elif kernels is not None and kernels.takes_logits(logits):
            losses[0, chunk], gradient = kernels.softmax_loss_(logits, targets_N1[chunk], n_vocab), logits
        else:
            logits[:, n_vocab:] = float("-inf")  # padding of the head: probability 0
            if logits.device.type in ONE_PASS_DEVICES:
                losses[0, chunk], gradient = _losses_and_probabilities(logits, targets_N1[chunk])
                lost = (losses[0, chunk] > _max_nats(dtype)).nonzero().squeeze(1) + start
                if len(lost):  # the target's probability is too small for the dtype: take these losses from the logits
                    logits = hidden[lost] @ weight[:n_vocab].t()
                    losses[0, lost] = F.cross_entropy(logits.float(), targets_N1[lost, 0], reduction="none")
            else:
                losses[0, chunk], gradient = _losses_by_the_largest(logits, targets_N1[chunk])
            # d loss / d logits = softmax − one-hot. Not scatter_: torch's deterministic form of it copies all logits
            # twice, 0.4 of a step with 32,000 entries (experiments/LOG.md).
            target = gradient.gather(1, targets_N1[chunk]).squeeze(1)
            gradient.index_put_((rows_N[: len(target)], targets_N1[chunk, 0]), target - 1)
        torch.mm(gradient, weight, out=dhidden[chunk])
        if is_frozen:
            continue
        part = gradient.t() @ hidden[chunk]
        # Summed in fp32: over hundreds of chunks, a bf16 sum would lose small terms.
        dweight = part.float() if dweight is None else dweight.add_(part)
    if dweight is None and not is_frozen:  # no tokens
        dweight = torch.zeros_like(weight, dtype=torch.float32)
    nats, smoothed, z = (losses * counted).sum(1).unbind()
    if masks:
        dhidden.mul_(counted[:, None])
    return (nats, smoothed, z), dhidden, None if dweight is None else dweight[:n_vocab]


def _max_nats(dtype: torch.dtype) -> float:
    """The largest loss that a probability in ``dtype`` represents to a relative precision of 2⁻⁹, that of bf16.

    Subnormal numbers lose precision bit by bit; in fp16 that begins at a probability of 1e-5, or 11 nats.
    """
    limits = torch.finfo(dtype)
    return -math.log(limits.tiny * limits.eps * 2**8)


def _regularized(
    logits_NV: Tensor, targets_N1: Tensor, n_vocab: int, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """(3, N) cross-entropy, smoothing and z parts in fp32, and the gradient of their sum in the logits' dtype.

    With n = logsumexp(logits), the smoothed loss is n − (1−ε)·logits[target] − ε·mean(logits), the z-loss is z·n², and
    d/d logits = (1 + 2·z·n)·softmax − (1−ε)·one-hot − ε/V.
    """
    scores = logits_NV[:, :n_vocab].float()
    logsumexp = scores.logsumexp(-1, keepdim=True)
    target = scores.gather(1, targets_N1)
    nothing = torch.zeros_like(target)  # rather than 0 · ∞ = NaN where the other factor is infinite
    smoothed = smoothing * (target - scores.mean(-1, keepdim=True)) if smoothing else nothing
    losses = (logsumexp - target, smoothed, z_loss * logsumexp.square() if z_loss else nothing)
    gradient = torch.zeros_like(logits_NV, dtype=torch.float32)
    gradient[:, :n_vocab] = scores.sub_(logsumexp).exp_().mul_(1 + 2 * z_loss * logsumexp).sub_(smoothing / n_vocab)
    rows_N = torch.arange(len(target), device=target.device)
    gradient.index_put_((rows_N, targets_N1.squeeze(1)), target.new_full((), smoothing - 1), accumulate=True)
    return torch.cat(losses, dim=1).t(), gradient.to(logits_NV.dtype)


def _losses_and_probabilities(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax of the targets (N,) in fp32, and the softmax (N, V) in the logits' dtype; overwrites the logits."""
    # One pass over memory instead of five. The kernel computes in fp32 and rounds its result, so a token's loss is
    # off by at most the rounding of its probability (0.002 nats in bf16), without bias.
    torch._softmax(logits_NV, -1, False, out=logits_NV)
    return -logits_NV.gather(1, targets_N1).squeeze(1).float().log(), logits_NV


def _losses_by_the_largest(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a GPU: without values on the host, which would have to wait for the device, and without fp32 logits.

    logsumexp = l − log softmax(l) of any logit l. That of the largest is at least 1/V, so no dtype loses it, and its
    rounding is all that a loss is off by (0.002 nats in bf16), however unlikely the target. A chunk's logits are read
    and written 8 bytes each; logsumexp, difference and exponential in fp32 take 50 and four times the memory.
    """
    largest = logits_NV.max(-1, keepdim=True)
    target_N1 = logits_NV.gather(1, targets_N1)
    probabilities_NV = logits_NV.softmax(-1)
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    logsumexp_N1 = largest.values.to(exact) - probabilities_NV.gather(1, largest.indices).to(exact).log()
    return (logsumexp_N1 - target_N1.to(exact)).squeeze(1), probabilities_NV


class TokenScores(NamedTuple):
    """What :func:`token_scores` returns; (N,) each."""

    logprobs: Tensor
    """log π(target), with a gradient; 0 where the target is ``IGNORE``."""
    entropies: Tensor
    """Entropy of π in nats, without a gradient; 0 where the target is ``IGNORE``."""


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    n_counted: int | None = None,
) -> Tensor:
    """log softmax(hidden · weightᵀ / temperature)[target] (N,), 0 where the target is ``IGNORE``.

    Losses on sequences (preferences, policy gradients) are functions of these numbers, so they need neither logits nor
    memory for them: forward and backward compute the logits of one chunk at a time. Unlike in :func:`lm_head_loss` the
    weights of the tokens in the loss are unknown until the backward pass, which therefore computes the logits again.
    Ignored tokens cost nothing. The results are in fp32, or in fp64 for fp64 inputs.

    Args:
        hidden_ND: hidden states.
        weight_VD: matrix of the head.
        targets_N: ids in 0 … V−1, or −100 (``IGNORE``).
        temperature: of the distribution that the tokens were sampled from.
        chunk_tokens: tokens per chunk; None: as many as fit ``CHUNK_BYTES`` of logits.
        n_counted: number of targets that are not ignored; None: on a GPU, the host waits until they are counted.
    """
    return _token_scores(hidden_ND, weight_VD, targets_N, temperature, chunk_tokens, n_counted, False).logprobs


def token_scores(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    n_counted: int | None = None,
) -> TokenScores:
    """:func:`token_logprobs`, and the entropy of each distribution."""
    return _token_scores(hidden_ND, weight_VD, targets_N, temperature, chunk_tokens, n_counted, True)


def _token_scores(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    temperature: float,
    chunk_tokens: int | None,
    n_counted: int | None,
    with_entropy: bool,
) -> TokenScores:
    dtype = autocast_dtype(hidden_ND.device, hidden_ND.dtype)
    counted_M = _counted_positions(targets_N, n_counted)
    size = chunk_tokens or _tokens_of_a_chunk(hidden_ND.device, weight_VD.shape[0] * dtype.itemsize)
    settings = _ScoreSettings(dtype, size, temperature, with_entropy)
    scores = _TokenScores.apply(hidden_ND[counted_M], weight_VD, targets_N[counted_M], settings)
    return TokenScores(*(x.new_zeros(len(targets_N)).index_copy(0, counted_M, x) for x in scores))


def _counted_positions(targets_N: Tensor, n_counted: int | None) -> Tensor:
    """(M,): where targets are not ignored, in order."""
    is_counted_N = targets_N != IGNORE
    if n_counted is None or targets_N.device.type == "cpu":
        return is_counted_N.nonzero().squeeze(1)
    return first_positions(is_counted_N, n_counted)


def first_positions(mask_N: Tensor, n: int) -> Tensor:
    """The positions of the first n true values, which are all that there are: ``nonzero``, but nothing waits for it.

    The size of what ``nonzero`` returns is only known to the device; that of a sort is known to the host as well.
    """
    return mask_N.to(torch.uint8).sort(stable=True, descending=True).indices[:n]


class _ScoreSettings(NamedTuple):
    """Dtype of the products, tokens per chunk, temperature, and whether entropies are computed (else they are 0)."""

    dtype: torch.dtype
    size: int
    temperature: float
    with_entropy: bool


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, settings: _ScoreSettings
    ) -> tuple[Tensor, Tensor]:
        dtype, size, temperature, with_entropy = settings
        with torch.autocast(hidden_MD.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            exact = torch.promote_types(dtype, torch.float32)
            logprobs, entropies, logsumexps = hidden_MD.new_zeros(3, len(hidden_MD), dtype=exact).unbind()
            for start in range(0, len(hidden_MD), size):
                chunk = slice(start, start + size)
                logits = (hidden_MD[chunk].to(dtype) @ weight.t()).to(exact).div_(temperature)
                logsumexp = logits.logsumexp(-1)
                logsumexps[chunk] = logsumexp
                logprobs[chunk] = logits.gather(1, targets_M[chunk, None]).squeeze(1) - logsumexp
                if with_entropy:
                    logits.sub_(logsumexp[:, None])
                    entropies[chunk] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M, logsumexps)
        ctx.settings = settings
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, targets_M, logsumexps = ctx.saved_tensors
        dtype, size, temperature, _ = ctx.settings
        with torch.autocast(hidden_MD.device.type, enabled=False):
            weight, dhidden = weight_VD.to(dtype), torch.empty_like(hidden_MD)
            dweight = torch.zeros_like(weight_VD, dtype=logsumexps.dtype)
            rows = torch.arange(size, device=hidden_MD.device)
            for start in range(0, len(hidden_MD), size):
                chunk = slice(start, start + size)
                hidden, grad = hidden_MD[chunk].to(dtype), grad_M[chunk].to(logsumexps.dtype) / temperature
                logits = (hidden @ weight.t()).to(logsumexps.dtype).div_(temperature)
                # d log π(target) / d logits = (one-hot − softmax) / temperature
                dlogits = logits.sub_(logsumexps[chunk, None]).exp_().mul_(-grad[:, None])
                dlogits.index_put_((rows[: len(grad)], targets_M[chunk]), grad, accumulate=True)
                dlogits = dlogits.to(dtype)
                dhidden[chunk] = dlogits @ weight
                dweight += (dlogits.t() @ hidden).to(dweight.dtype)
        return dhidden, dweight.to(weight_VD.dtype), None, None


def perplexity(nats: float) -> float:
    """exp of a mean cross-entropy; inf above 709 nats, where it overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
