"""softmax(scale · q·kᵀ)·v with a causal mask, by the fastest kernel for the device, dtype and shape.

The choice is a fixed table, never a timing, so that two runs always agree: kernels round differently.
``chosen_kernel`` names the choice. ``benchmarks/attention_kernels.py`` measured the thresholds; they are the same with
AMX, with AVX512_BF16 alone and with neither (experiments/LOG.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.nn.attention.block_kernel import BlockConfig, block_attention, saved_scores
from tinyllm.nn.attention.document_kernel import by_document
from tinyllm.nn.attention.flex_kernel import flex_documents, has_flex_kernel
from tinyllm.nn.attention.fused_kernel import for_fused_kernel
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.attention.window_kernel import folded_attention

MAX_BLOCKED_LEN = 1024
"""Most keys per query with the block kernel. It saves the attention weights for the backward pass, up to T·S values;
beyond this length it is no faster than the fused kernel (experiments/LOG.md)."""

CAUSAL = AttentionMask()


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    *,
    mask: AttentionMask = CAUSAL,
    scale: float | None = None,
    visible: Tensor | None = None,
    dropout_p: float,
) -> Tensor:
    """Causal attention of T queries, the last T of S positions, to S keys.

    Args:
        q_BHTD: queries.
        k_BGSD: keys; G divides H, and key head g serves the query heads g·H/G … (g+1)·H/G − 1.
        v_BGSE: values; E may differ from D.
        mask: window, sinks and softcap. Keys between the sinks and the window that no query sees may be left out.
        scale: factor on q·k; None: 1/√D.
        visible: (B, 1, T, S) bool: the keys that each query sees, where rows of the batch differ. Replaces window
            and sinks.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, H, T, E)
    """
    (H, T, D), (S, E) = q_BHTD.shape[1:], v_BGSE.shape[2:]
    scale = D**-0.5 if scale is None else scale
    window = mask.window_within(S)
    # A single query sees every key up to itself, so it needs no mask and no blocks.
    if visible is not None or (T == 1 and not window):
        return _attend_each(q_BHTD, k_BGSD, v_BGSE, mask.softcap, scale, visible, dropout_p)
    trains = torch.is_grad_enabled() and (q_BHTD.requires_grad or k_BGSD.requires_grad or v_BGSE.requires_grad)
    device = q_BHTD.device.type
    block = block_size(
        device, q_BHTD.dtype, T, window=window, softcap=mask.softcap, same_head_dim=D == E, trains=trains
    )
    if block and (T == S or window or mask.softcap):
        config = BlockConfig(block, window, mask.sinks if window else 0, mask.softcap, scale, dropout_p)
        return block_attention(q_BHTD, k_BGSD, v_BGSE, config=config)
    if window:
        if E < D and device == "cpu":  # once, for all of its calls
            v_BGSE = F.pad(v_BGSE, (0, D - E))
        out = folded_attention(
            q_BHTD, k_BGSD, v_BGSE, window=window, sinks=mask.sinks, scale=scale, dropout_p=dropout_p
        )
        return out[..., :E]
    # is_causal would align the first query with the first key, but these queries are the last of S positions.
    visible = None if T == S else torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril_(S - T)
    k_BGSD, v_BGSE = for_fused_kernel(k_BGSD, v_BGSE, n_heads=H, is_masked=visible is not None)
    out = F.scaled_dot_product_attention(
        q_BHTD,
        k_BGSD,
        v_BGSE,
        attn_mask=visible,
        is_causal=visible is None,
        scale=scale,
        dropout_p=dropout_p,
        enable_gqa=k_BGSD.shape[1] != H,
    )
    return out[..., :E]


def attend_documents(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTE: Tensor,
    doc_ids_BT: Tensor,
    *,
    mask: AttentionMask,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Causal attention of T queries to the keys of their own document.

    Args:
        q_BHTD, k_BGTD, v_BGTE, scale, dropout_p: see :func:`attend`.
        doc_ids_BT: document of each token; a document is a run of equal ids within a row.
        mask: window and sinks count within a document, as if each stood alone.

    Returns:
        (B, H, T, E)
    """
    if has_flex_kernel(q_BHTD.device, dropout_p=dropout_p):
        return flex_documents(q_BHTD, k_BGTD, v_BGTE, doc_ids_BT, mask=mask, scale=scale)

    def attend_group(q: Tensor, k: Tensor, v: Tensor, doc_ids: Tensor | None) -> Tensor:
        visible = None if doc_ids is None else mask.within_documents(doc_ids)
        return attend(q, k, v, mask=mask, scale=scale, visible=visible, dropout_p=dropout_p)

    return by_document(q_BHTD, k_BGTD, v_BGTE, doc_ids_BT, attend_group)


def _attend_each(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    softcap: float,
    scale: float,
    visible: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attention of queries that see every key, or the keys marked in ``visible``."""
    (B, H, T, D), G = q_BHTD.shape, k_BGSD.shape[1]
    if T == 1:  # query heads that share a key head become rows of one product, which reads the keys once
        q_BHTD = q_BHTD.reshape(B, G, H // G, D)
    is_bf16_on_cpu = q_BHTD.dtype == torch.bfloat16 and q_BHTD.device.type == "cpu"
    if not softcap and not (is_bf16_on_cpu and visible is not None and q_BHTD.requires_grad):
        if q_BHTD.device.type != "cpu":  # there, no copy of the cache is worth it
            k_BGSD, v_BGSE = for_fused_kernel(k_BGSD, v_BGSE, n_heads=q_BHTD.shape[1], is_masked=visible is not None)
        gqa = q_BHTD.shape[1] != k_BGSD.shape[1]
        out = F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSE, attn_mask=visible, scale=scale, dropout_p=dropout_p, enable_gqa=gqa
        )
    else:
        q_BGRTD = q_BHTD.unflatten(1, (G, -1))
        scores_BGRTS = (q_BGRTD @ k_BGSD[:, :, None].transpose(-1, -2)).mul(scale / (softcap or 1))
        if softcap:
            scores_BGRTS = scores_BGRTS.tanh() * softcap
        if visible is not None:
            scores_BGRTS = scores_BGRTS.masked_fill(~visible[:, :, None], float("-inf"))
        weights = F.dropout(scores_BGRTS.softmax(-1), dropout_p)
        out = (weights @ v_BGSE[:, :, None]).flatten(1, 2)
    return out.reshape(B, H, T, -1)


def block_size(
    device: str,
    dtype: torch.dtype,
    seq_len: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
    same_head_dim: bool = True,
    trains: bool = True,
) -> int:
    """Queries per block of our own kernel; 0: torch's fused kernel is faster.

    Args:
        window, softcap: 0 where they have no effect.
        same_head_dim: values are as wide as keys, as the fused CPU kernel requires.
        trains: a backward pass follows.
    """
    is_bf16 = dtype == torch.bfloat16
    # The fused kernel does not support softcap; on the CPU with a window it is slower than our blocks.
    if softcap or (window and device == "cpu" and window <= MAX_BLOCKED_LEN):
        return 128 if is_bf16 else 64  # smaller blocks compute fewer masked scores; bf16 products need larger ones
    # On GPUs and on long sequences the fused kernel is faster; it does not store attention weights.
    if window or device != "cpu" or seq_len > MAX_BLOCKED_LEN:
        return 0
    if not is_bf16:
        return 0 if same_head_dim else 64  # if values and keys differ in size, the fused kernel needs padded values
    # In bf16 on the CPU the backward pass of the fused kernel is slow; few large blocks are fastest.
    n_blocks = 1 if seq_len < 128 else 2 if seq_len < 384 else 4
    return -(-seq_len // n_blocks) if trains else 0


def chosen_kernel(
    device: str, dtype: torch.dtype, seq_len: int, mask: AttentionMask = CAUSAL, *, same_head_dim: bool = True
) -> str:
    """Name of the kernel used in training at this length, for the log."""
    window = mask.window_within(seq_len)
    block = block_size(device, dtype, seq_len, window=window, softcap=mask.softcap, same_head_dim=same_head_dim)
    suffix = f", window {window}" if window else ""
    if block:
        return f"lower-triangular blocks ({-(-seq_len // block)}{suffix})"
    return "scaled_dot_product_attention" + (f" (blocks{suffix})" if window else "")


def recompiles_per_length(
    device: str, dtype: torch.dtype, seq_len: int, mask: AttentionMask = CAUSAL, *, same_head_dim: bool = True
) -> bool:
    """Whether this kernel runs different operations at each length."""
    window = mask.window_within(seq_len)
    return bool(
        window or block_size(device, dtype, seq_len, window=window, softcap=mask.softcap, same_head_dim=same_head_dim)
    )


def saved_activations(
    device: str,
    dtype: torch.dtype,
    seq_len: int,
    mask: AttentionMask = CAUSAL,
    *,
    same_head_dim: bool = True,
    dropout_p: float = 0.0,
) -> int:
    """Values per sequence and head that our own kernel saves for the backward pass; 0 for the fused kernel."""
    window = mask.window_within(seq_len)
    block = block_size(device, dtype, seq_len, window=window, softcap=mask.softcap, same_head_dim=same_head_dim)
    if not block or seq_len == 1:
        return 0
    return saved_scores(seq_len, seq_len, BlockConfig(block, window, mask.sinks, mask.softcap, 1.0, dropout_p))
