"""softmax(q·kᵀ/√D)·v with a causal mask, by the kernel that was measured to be fastest.

The choice is a fixed table of device, dtype and shape, so two runs always agree; ``chosen_kernel`` says what it is and
``benchmarks/attention_kernels.py`` measures it again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.nn.attention.blocks import block_attention

LONGEST_BLOCKED = 1024
"""Blocks keep half of the T² attention weights for the backward pass; beyond this length that is too much memory."""


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, mask: Tensor | None = None, dropout_p: float) -> Tensor:
    """Causal attention of T queries, the last T of S positions, to S keys.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H, and key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGSD: values.
        mask: which keys each query sees (B, 1, T, S), where that is not the rule above.
        dropout_p: probability with which an attention weight is dropped.

    Returns:
        (B, H, T, D)
    """
    n_queries, n_keys = q_BHTD.shape[2], k_BGSD.shape[2]
    gqa = q_BHTD.shape[1] != k_BGSD.shape[1]
    if mask is not None:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, dropout_p=dropout_p, enable_gqa=gqa
        )
    if n_queries == n_keys:
        trains = torch.is_grad_enabled() and q_BHTD.requires_grad
        blocks = n_blocks(q_BHTD.device.type, q_BHTD.dtype, n_keys) if trains else 0
        if blocks:
            return block_attention(q_BHTD, k_BGSD, v_BGSD, n_blocks=blocks, dropout_p=dropout_p)
        return F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSD, is_causal=True, dropout_p=dropout_p, enable_gqa=gqa
        )
    # is_causal would align the mask with the first key; these queries are the last ones.
    if n_queries > 1:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q_BHTD.device).tril(n_keys - n_queries)
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, dropout_p=dropout_p, enable_gqa=gqa)


def n_blocks(device: str, dtype: torch.dtype, seq_len: int) -> int:
    """Blocks of queries that training attention is computed in; 0: torch's fused kernel."""
    if device != "cpu" or dtype != torch.bfloat16 or seq_len > LONGEST_BLOCKED:
        return 0
    return 1 if seq_len < 128 else 2 if seq_len < 384 else 4


def chosen_kernel(device: str, dtype: torch.dtype, seq_len: int) -> str:
    """The kernel that trains on sequences of this length, in words."""
    blocks = n_blocks(device, dtype, seq_len)
    return f"lower-triangular blocks ({blocks})" if blocks else "scaled_dot_product_attention"


def kept_weights(device: str, dtype: torch.dtype, seq_len: int) -> int:
    """Attention weights that the kernel keeps for the backward pass, for each sequence and head."""
    blocks = n_blocks(device, dtype, seq_len)
    return seq_len * seq_len * (blocks + 1) // (2 * blocks) if blocks else 0
