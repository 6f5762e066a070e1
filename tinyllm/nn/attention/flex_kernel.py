"""Attention within documents on a GPU: torch's FlexAttention (Dong et al. 2024, https://arxiv.org/abs/2412.05496).

One kernel for all documents of a batch, whatever their lengths, so nothing waits for the device and torch.compile needs
one graph. It is told which blocks of queries see which blocks of keys, and skips the rest; the mask of all queries and
keys exists nowhere.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tinyllm.nn.attention.masking import AttentionMask, document_starts
from tinyllm.utils.device import gpu_capability
from tinyllm.utils.late_imports import is_installed

BLOCK = 128
"""Queries and keys per block."""
MIN_CAPABILITY = (8, 0)
"""Older GPUs lack the instructions that the kernel is tuned for."""
HAS_TRITON = is_installed("triton")


def has_flex_kernel(device: torch.device, *, dropout_p: float) -> bool:
    """Whether FlexAttention can be used: on a CUDA GPU with Triton, and without dropout, which it does not have."""
    return device.type == "cuda" and not dropout_p and HAS_TRITON and gpu_capability(device) >= MIN_CAPABILITY


def flex_documents(
    q_BHTD: Tensor, k_BGTD: Tensor, v_BGTE: Tensor, doc_ids_BT: Tensor, *, mask: AttentionMask, scale: float
) -> Tensor:
    """Causal attention of T queries to the keys of their own document; see ``kernels.attend_documents``.

    Returns:
        (B, H, T, E)
    """
    starts_BT = document_starts(doc_ids_BT)
    with _compiled_everywhere(q_BHTD.device.type):
        out = _kernel(q_BHTD.device.type)(
            q_BHTD,
            k_BGTD,
            v_BGTE,
            score_mod=_softcap(mask.softcap) if mask.softcap else None,
            block_mask=block_mask(starts_BT, mask),
            scale=scale,
            enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
        )
    assert isinstance(out, Tensor)
    return out


def _compiled_everywhere(device: str) -> AbstractContextManager[object]:
    """The context in which the kernel is compiled on a GPU, even where evaluation runs the model uncompiled.

    Otherwise an evaluation would compute, and hold, all scores. Within a graph nothing is to be done.
    """
    if device != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("default")


def block_mask(starts_BT: Tensor, mask: AttentionMask) -> BlockMask:
    """Which blocks of keys each block of queries sees, and the rule for the pairs in blocks seen in part.

    Args:
        starts_BT: where the document of each token begins.
    """
    seen_BQK, whole_BQK = visible_blocks(starts_BT, mask, BLOCK)
    T = starts_BT.shape[1]

    def is_visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        first = starts_BT[b, q]
        visible = (k <= q) & (k >= first)
        if mask.window:
            visible = visible & ((k > q - mask.window) | (k < first + mask.sinks))
        return visible

    return BlockMask.from_kv_blocks(
        *_listed(seen_BQK & ~whole_BQK), *_listed(whole_BQK), BLOCK_SIZE=BLOCK, mask_mod=is_visible, seq_lengths=(T, T)
    )


def visible_blocks(starts_BT: Tensor, mask: AttentionMask, size: int) -> tuple[Tensor, Tensor]:
    """Blocks of ``size`` tokens: (B, Q, K) that some query may see, and (B, Q, K) that all their queries see whole."""
    T = starts_BT.shape[1]
    first_N = torch.arange(0, T, size, device=starts_BT.device)  # of each block
    last_N = (first_N + size - 1).clamp(max=T - 1)
    earliest_BQ1, latest_BQ1 = starts_BT[:, first_N, None], starts_BT[:, last_N, None]  # starts never decrease
    first_Q1, last_Q1 = first_N[:, None], last_N[:, None]
    seen_BQK = (first_N <= last_Q1) & (last_N >= earliest_BQ1)
    whole_BQK = (last_N <= first_Q1) & (first_N >= latest_BQ1)
    if mask.window:
        near_QK = last_N > first_Q1 - mask.window
        seen_BQK &= near_QK | (first_N < latest_BQ1 + mask.sinks) if mask.sinks else near_QK
        whole_BQK &= first_N > last_Q1 - mask.window
    return seen_BQK, whole_BQK


def _listed(chosen_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, Q): the number of blocks of keys, and (B, 1, Q, K): their indices, followed by those of the others."""
    order_BQK = chosen_BQK.int().argsort(stable=True, dim=-1, descending=True)
    return chosen_BQK.sum(-1, dtype=torch.int32)[:, None], order_BQK.int()[:, None]


@cache  # one function per value: the kernel is compiled for each
def _softcap(cap: float) -> Callable[..., Tensor]:
    return lambda score, b, h, q, k: cap * torch.tanh(score / cap)


@cache
def _kernel(device: str) -> Any:
    """FlexAttention; compiled on a GPU, where uncompiled it would compute all scores."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
