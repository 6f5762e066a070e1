"""softmax(q·kᵀ/√D)·v with a causal mask."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, dropout_p: float) -> Tensor:
    """Causal attention of T queries, the last T of S positions, to S keys.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H, and key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGSD: values.
        dropout_p: probability with which an attention weight is dropped.

    Returns:
        (B, H, T, D)
    """
    n_queries, n_keys = q_BHTD.shape[2], k_BGSD.shape[2]
    gqa = q_BHTD.shape[1] != k_BGSD.shape[1]
    if n_queries == n_keys:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSD, is_causal=True, dropout_p=dropout_p, enable_gqa=gqa
        )
    # is_causal would align the mask with the first key; these queries are the last ones.
    mask = None
    if n_queries > 1:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q_BHTD.device).tril(n_keys - n_queries)
    return F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, dropout_p=dropout_p, enable_gqa=gqa
    )
