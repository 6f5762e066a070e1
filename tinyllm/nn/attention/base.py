"""The interface of attention layers."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tinyllm.nn.attention.kernels import (
    attend,
    attend_documents,
    chosen_kernel,
    has_flex_kernel,
    recompiles_per_length,
    saved_activations,
)
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.cache import LayerCache
from tinyllm.nn.decode_kernels import DecodeKernels


class Attention(nn.Module, ABC):
    """Causal self-attention, with its own cache format, FLOP count and initialization.

    A block builds it with ``tinyllm.utils.signatures.make``: of d_model, n_heads, n_kv_heads, max_seq_len, bias, pos,
    norm_eps and attn_dropout it receives those that its constructor names. The remaining arguments are the keys of the
    option's yaml file.

    Attributes:
        scale: factor on q·k; a parametrization may change it before the first forward pass.
    """

    scale: float

    @abstractmethod
    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        cache: LayerCache | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Attend from each position to itself and all before it.

        Args:
            x_BTC: tokens at positions start … start+T−1.
            start: position of the first token; (B,) where the rows differ; (B, T), the position of every token, with
                ``doc_ids``. 0 without a cache.
            cache: holds the positions before ``start``; the T new ones are added to it.
            doc_ids: (B, T) document of each token; a token attends to its own document only. Not with a cache.

        Returns:
            (B, T, C)
        """

    @abstractmethod
    def make_cache(self, batch_size: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """An empty cache for ``max_len`` positions."""

    @abstractmethod
    def init_weights(self, *, std: float, residual_std: float) -> None:
        """Initialize the weights, with ``residual_std`` for the projection into the residual stream."""

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """FLOPs of the forward pass for one token that attends to ``context`` keys."""

    def decode_flops_per_token(self, context: int) -> int:
        """FLOPs of decoding one token with a cache; ``context`` counts the token itself."""
        return self.flops_per_token(context)

    @abstractmethod
    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Cache bytes per position of one sequence."""

    def cache_slots(self, max_len: int) -> int:
        """Positions that the cache of a sequence of ``max_len`` tokens holds; fewer than ``max_len`` with a window."""
        return max_len

    def chosen_kernel(self, device: str, dtype: torch.dtype, seq_len: int) -> str:
        """Name of the kernel used in training at this length, for the log."""
        return type(self).__name__

    def recompiles_per_length(self, device: str, dtype: torch.dtype, seq_len: int) -> bool:
        """Whether that kernel runs different operations at each length, so that torch.compile compiles each anew."""
        return False

    def has_data_dependent_shapes(self, device: torch.device) -> bool:
        """Whether shapes depend on the lengths of documents, so that torch.compile would compile every batch anew."""
        return True

    def saved_activations(self, device: str, dtype: torch.dtype, seq_len: int) -> int:
        """Values per sequence that this kernel saves for the backward pass, besides its inputs and outputs."""
        return 0


class MaskedAttention(Attention):
    """Attention computed by ``kernels.attend``, which chooses the kernel.

    Attributes:
        mask: window, sinks and softcap.
        n_heads: number of query heads.
        attn_dropout: on the attention weights.
        cache_shapes: (heads, size) of each tensor that the cache holds.
        same_head_dim: values are as wide as keys, which the fused CPU kernel requires.
        decode_kernels: attend from a single query per row faster than torch's kernel; set for inference only.
    """

    mask: AttentionMask
    n_heads: int
    attn_dropout: float
    cache_shapes: list[tuple[int, int]]
    same_head_dim = True
    decode_kernels: DecodeKernels | None = None

    def attend(
        self,
        q_BHTD: Tensor,
        k_BGSD: Tensor,
        v_BGSE: Tensor,
        *,
        visible: Tensor | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Attention of queries to keys, see ``kernels.attend`` and ``attend_documents``: (B, H, T, E).

        Args:
            visible: what each query sees where the rows differ, as ``LayerCache.update`` returns it.
            doc_ids: (B, T) document of each token, see ``forward``.
        """
        dropout_p = self.attn_dropout if self.training else 0.0
        if doc_ids is not None:
            return attend_documents(
                q_BHTD, k_BGSD, v_BGSE, doc_ids, mask=self.mask, scale=self.scale, dropout_p=dropout_p
            )
        first_keys_B = visible if visible is not None and visible.ndim == 1 else None
        if (
            self.decode_kernels is not None
            and q_BHTD.shape[2] == 1
            and (visible is None or first_keys_B is not None)
            and not self.mask.softcap
            and not self.mask.window_within(k_BGSD.shape[2])
            and q_BHTD.dtype == k_BGSD.dtype
        ):
            out_BHE = self.decode_kernels.attend(
                q_BHTD[:, :, 0], k_BGSD, v_BGSE, scale=self.scale, first_keys_B=first_keys_B
            )
            return out_BHE[:, :, None]
        if first_keys_B is not None:
            keys_S = torch.arange(k_BGSD.shape[2], device=k_BGSD.device)
            visible = (keys_S < first_keys_B.to(k_BGSD.device)[:, None])[:, None, None]
        return attend(
            q_BHTD,
            k_BGSD,
            v_BGSE,
            mask=self.mask,
            scale=self.scale,
            visible=visible,
            dropout_p=dropout_p,
        )

    def make_cache(self, batch_size: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        return LayerCache(
            self.cache_shapes,
            batch_size=batch_size,
            max_len=max_len,
            window=self.mask.window,
            sinks=self.mask.sinks,
            device=device,
            dtype=dtype,
        )

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        return sum(heads * size for heads, size in self.cache_shapes) * dtype.itemsize

    def cache_slots(self, max_len: int) -> int:
        return self.mask.keys_seen(max_len)

    def chosen_kernel(self, device: str, dtype: torch.dtype, seq_len: int) -> str:
        return chosen_kernel(device, dtype, seq_len, self.mask, same_head_dim=self.same_head_dim)

    def recompiles_per_length(self, device: str, dtype: torch.dtype, seq_len: int) -> bool:
        return recompiles_per_length(device, dtype, seq_len, self.mask, same_head_dim=self.same_head_dim)

    def has_data_dependent_shapes(self, device: torch.device) -> bool:
        return not has_flex_kernel(device, dropout_p=self.attn_dropout)

    def saved_activations(self, device: str, dtype: torch.dtype, seq_len: int) -> int:
        return self.n_heads * saved_activations(
            device, dtype, seq_len, self.mask, same_head_dim=self.same_head_dim, dropout_p=self.attn_dropout
        )
