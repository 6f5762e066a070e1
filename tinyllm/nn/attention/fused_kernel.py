"""What torch's fused attention kernels take as they are, and what has to be brought into their form."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_FLASH_DIM = 256
"""Widest heads of FlashAttention."""


def for_fused_kernel(
    k_BGSD: Tensor, v_BGSE: Tensor, *, n_heads: int, is_masked: bool, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values in the form that a fused kernel of the device takes; torch would else compute all scores.

    The CPU's kernel and FlashAttention require values as wide as keys: narrower ones, as MLA has, are padded. On a GPU,
    what FlashAttention does not take (fp32, masks, wide heads) goes to the memory-efficient kernel, which has no
    grouped queries: heads of keys and values are repeated. Which kernel takes what is in torch's
    ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``.

    Args:
        n_heads: heads of the queries.
        is_masked: a mask is given; causal attention needs none.
        device: default: that of the keys.

    Returns:
        Keys, and values of at least the width that they had.
    """
    device = k_BGSD.device.type if device is None else device
    (G, _, D), E = k_BGSD.shape[1:], v_BGSE.shape[-1]
    is_half = k_BGSD.dtype in (torch.bfloat16, torch.float16)
    flash = device == "cuda" and is_half and D <= MAX_FLASH_DIM and not is_masked
    if E < D and (device == "cpu" or flash):
        v_BGSE = F.pad(v_BGSE, (0, D - E))
    if n_heads != G and device == "cuda" and not flash:
        k_BGSD, v_BGSE = (x.repeat_interleave(n_heads // G, dim=1) for x in (k_BGSD, v_BGSE))
    return k_BGSD, v_BGSE
