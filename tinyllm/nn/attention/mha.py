"""Attention over heads: multi-head (MHA), grouped-query (GQA) and multi-query (MQA)."""

from typing import Any

import torch
from torch import Tensor

from tinyllm.nn.attention.base import MaskedAttention
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.cache import LayerCache
from tinyllm.nn.linear import Linear
from tinyllm.nn.norm import MIN_EPS, RMSNorm
from tinyllm.nn.position import Position
from tinyllm.nn.step_recorder import Buffer, StepRecorder, Unsupported
from tinyllm.nn.train_kernels import AttentionConfig, TrainKernels


class MHA(MaskedAttention):
    """Multi-head attention (Vaswani et al. 2017): every query head has its own keys and values.

    ``MQA`` and ``GQA`` differ only in the number of key-value heads, each shared by n_heads / n_kv_heads query heads.

    Args:
        bias: bias of the output projection, and of queries, keys and values unless ``qkv_bias`` says otherwise.
        head_dim: size of a head; None: d_model / n_heads.
        qk_norm: RMSNorm with a weight on queries and keys, before the rotation (Henry et al. 2020; Qwen3, Gemma 3).
            Scores then do not grow with the norms of queries and keys, which keeps high learning rates stable.
        norm_eps: eps of the model's norms.
        qk_norm_eps: eps of the norms of queries and keys; None: ``norm_eps``.
        window, sinks, softcap: see ``AttentionMask``.
        qkv_bias: bias of queries, keys and values; None: ``bias``.
        nope: no rotary positions in this layer (NoPE, Kazemnejad et al. 2023).

    Attributes:
        train_kernels: used in training and evaluation, for plain causal attention.

    Raises:
        ValueError: a number out of range, a size that does not divide, or ``nope`` without rotary positions.
    """

    train_kernels: TrainKernels | None = None

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        bias: bool,
        attn_dropout: float,
        head_dim: int | None,
        qk_norm: bool,
        window: int,
        sinks: int,
        softcap: float,
        norm_eps: float,
        pos: Position,
        qk_norm_eps: float | None = None,
        qkv_bias: bool | None = None,
        nope: bool = False,
    ) -> None:
        super().__init__()
        if qk_norm_eps is not None and not qk_norm_eps >= MIN_EPS:
            raise ValueError(f"qk_norm_eps={qk_norm_eps} must be at least {MIN_EPS:g}")
        eps = norm_eps if qk_norm_eps is None else qk_norm_eps
        n_kv_heads = self._kv_heads(n_heads)
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.head_dim = resolve_head_dim(head_dim, d_model=d_model, n_heads=n_heads)
        self.scale = self.head_dim**-0.5
        self.cache_shapes = [(n_kv_heads, self.head_dim)] * 2  # keys and values
        self.mask = AttentionMask(window=window, sinks=sinks, softcap=softcap)
        self.attn_dropout = attn_dropout
        if nope and not pos.rotates:
            raise ValueError("nope=true turns off rotary positions in a layer, and this model has none: leave it false")
        self.nope = nope
        self.rotary = None if nope else pos.rotary(self.head_dim)
        self.q_norm = RMSNorm(dim=self.head_dim, eps=eps) if qk_norm else None
        self.k_norm = RMSNorm(dim=self.head_dim, eps=eps) if qk_norm else None
        # One product for queries, keys and values: fewer and larger calls, and x is read once.
        self.qkv = Linear(
            d_in=d_model,
            d_out=(n_heads + 2 * n_kv_heads) * self.head_dim,
            bias=bias if qkv_bias is None else qkv_bias,
        )
        self.out = Linear(d_in=n_heads * self.head_dim, d_out=d_model, bias=bias)

    def _kv_heads(self, n_heads: int) -> int:
        return n_heads

    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        cache: LayerCache | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        heads_BTnD = self.qkv(x_BTC).unflatten(-1, (-1, self.head_dim))
        kernels = self.train_kernels if cache is None and doc_ids is None else None
        if kernels is not None and self._is_plain(x_BTC.shape[1]) and kernels.takes_heads(heads_BTnD, self.n_kv_heads):
            tables = None if self.rotary is None else (self.rotary.cos, self.rotary.sin)
            config = AttentionConfig(self.n_heads, self.n_kv_heads, self.scale)
            return self.out(kernels.attention(heads_BTnD, tables, config).flatten(2))
        q_BTHD, k_BTGD, v_BTGD = heads_BTnD.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        if self.rotary is not None:
            q_BHTD, k_BGSD = self.rotary(q_BTHD, start), self.rotary(k_BTGD, start)
        else:
            q_BHTD, k_BGSD = q_BTHD.transpose(1, 2), k_BTGD.transpose(1, 2)
        v_BGSD = v_BTGD.transpose(1, 2)
        visible_B1TS = None
        if cache is not None:
            (k_BGSD, v_BGSD), visible_B1TS = cache.update(k_BGSD, v_BGSD, start=start)
        y_BHTD = self.attend(q_BHTD, k_BGSD, v_BGSD, visible=visible_B1TS, doc_ids=doc_ids)
        return self.out(y_BHTD.transpose(1, 2).flatten(2))

    def _is_plain(self, seq_len: int) -> bool:
        """Whether this is causal attention without additions, which the kernels for training compute."""
        return (
            self.q_norm is None
            and not self.attn_dropout
            and not self.mask.softcap
            and not self.mask.window_within(seq_len)
            and type(self).attend is MaskedAttention.attend
        )

    def _trains_with_kernels(self, device: str, dtype: torch.dtype, seq_len: int) -> bool:
        kernels = self.train_kernels
        return kernels is not None and kernels.attends(device, dtype, self.head_dim) and self._is_plain(seq_len)

    def chosen_kernel(self, device: str, dtype: torch.dtype, seq_len: int) -> str:
        if self._trains_with_kernels(device, dtype, seq_len):
            return "C++ kernel"
        return super().chosen_kernel(device, dtype, seq_len)

    def saved_activations(self, device: str, dtype: torch.dtype, seq_len: int) -> int:
        if self._trains_with_kernels(device, dtype, seq_len):
            return 2 * self.n_heads * seq_len  # a number in fp32 for each query
        return super().saved_activations(device, dtype, seq_len)

    def record(self, step: StepRecorder, x: Buffer, layer: int, stream: Buffer) -> None:
        """Record the layer for decoding in C++; its outputs are added to the residual stream.

        Args:
            layer: number of its cache.
        """
        if self.mask.softcap or type(self).attend is not MaskedAttention.attend:
            raise Unsupported(f"softcap={self.mask.softcap} or attention of {type(self).__name__}")
        heads = step.attend(
            step.record(self.qkv, x),
            layer=layer,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            tables=None if self.rotary is None else step.record(self.rotary),
            norms=None if self.q_norm is None or self.k_norm is None else (self.q_norm.weight, self.k_norm.weight),
            eps=0.0 if self.q_norm is None else self.q_norm.eps,
            scale=self.scale,
        )
        step.record(self.out, heads, stream)

    def init_weights(self, *, std: float, residual_std: float) -> None:
        self.qkv.init_weights(std)
        self.out.init_weights(residual_std)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.init_weights()

    def flops_per_token(self, context: int) -> int:
        scores_and_values = 2 * 2 * self.n_heads * self.head_dim * self.mask.keys_seen(context)
        return self.qkv.flops() + self.out.flops() + scores_and_values


class MQA(MHA):
    """Multi-query attention (Shazeer 2019): all query heads share one head of keys and values."""

    def _kv_heads(self, n_heads: int) -> int:
        return 1


class GQA(MHA):
    """Grouped-query attention (Ainslie et al. 2023): each key-value head serves n_heads / n_kv_heads query heads."""

    def __init__(self, *, n_kv_heads: int, **shared: Any) -> None:
        self.n_kv_heads = n_kv_heads  # first, because the constructor of MHA asks for it
        super().__init__(**shared)

    def _kv_heads(self, n_heads: int) -> int:
        return self.n_kv_heads


def resolve_head_dim(head_dim: int | None, *, d_model: int, n_heads: int) -> int:
    """``head_dim``, or d_model / n_heads.

    Raises:
        ValueError: ``n_heads`` does not divide ``d_model``, or the size is less than 1.
    """
    if head_dim is None:
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not divisible by n_heads={n_heads}")
        return d_model // n_heads
    if head_dim < 1:
        raise ValueError(f"head_dim={head_dim} must be at least 1")
    return head_dim
