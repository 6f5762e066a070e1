"""Windowed attention with the fused kernel: blocks of queries folded into the batch.

With a mask for the whole sequence, the fused kernel would compute every score outside the window too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.nn.attention.fused_kernel import for_fused_kernel


def folded_attention(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, *, window: int, sinks: int, scale: float, dropout_p: float
) -> Tensor:
    """Attention of T queries, the last T of S positions, to the last ``window`` keys each and to the sinks.

    Queries that see all keys before them are one call of the fused kernel. The rest is cut into blocks of ``window``
    queries. Relative to its block every key is at the same place, so one call with one small mask serves all blocks.
    Nothing is quadratic in the length, at the price of a second copy of keys and values.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H, and key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGSE: values.
        window: at least 1.
        sinks: number of first keys that every query sees.
        scale: factor on q·k.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, H, T, E)
    """
    (B, H, T, _), (G, S, E) = q_BHTD.shape, v_BGSE.shape[1:]
    offset = S - T
    # Early queries, whose window reaches back to the first position or the sinks: an ordinary causal mask.
    n_early = min(max(window + sinks - offset, 0), T)
    parts = []
    if n_early:
        seen = offset + n_early
        visible = torch.ones(n_early, seen, dtype=torch.bool, device=q_BHTD.device).tril_(offset) if offset else None
        k, v = for_fused_kernel(k_BGSD[:, :, :seen], v_BGSE[:, :, :seen], n_heads=H, is_masked=visible is not None)
        early = F.scaled_dot_product_attention(
            q_BHTD[:, :, :n_early],
            k,
            v,
            attn_mask=visible,
            is_causal=visible is None,
            scale=scale,
            dropout_p=dropout_p,
            enable_gqa=k.shape[1] != H,
        )
        parts.append(early[..., :E])
    if n_early < T:
        n_blocks = -(-(T - n_early) // window)
        padding = n_blocks * window - (T - n_early)  # padding after the last query, which no real query sees
        first = offset + n_early - window + 1

        def columns(x_BGSD: Tensor) -> Tensor:
            """(B·blocks, G, sinks + 2·window − 1, D)"""
            slid = F.pad(x_BGSD[:, :, first:], (0, 0, 0, padding)).unfold(2, 2 * window - 1, window).transpose(-1, -2)
            fixed = x_BGSD[:, :, None, :sinks].expand(-1, -1, n_blocks, -1, -1)
            return torch.cat((fixed, slid), dim=3).transpose(1, 2).flatten(0, 1)

        # query heads that share a key head become rows of one matrix product
        rows = F.pad(q_BHTD[:, :, n_early:], (0, 0, 0, padding)).unflatten(2, (n_blocks, window)).unflatten(1, (G, -1))
        visible = torch.ones(window, 2 * window - 1, dtype=torch.bool, device=q_BHTD.device).triu_().tril_(window - 1)
        late = F.scaled_dot_product_attention(
            rows.permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1),
            columns(k_BGSD),
            columns(v_BGSE),
            attn_mask=F.pad(visible, (sinks, 0), value=True).repeat(H // G, 1),
            scale=scale,
            dropout_p=dropout_p,
        )
        by_block = late.reshape(B, n_blocks, G, H // G, window, E).permute(0, 2, 3, 1, 4, 5)
        parts.append(by_block.flatten(3, 4).flatten(1, 2)[:, :, : T - n_early])
    return torch.cat(parts, dim=2)
