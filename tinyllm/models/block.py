"""A decoder layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.nn.attention.base import Attention
from tinyllm.nn.cache import LayerCache
from tinyllm.nn.feedforward import FeedForward, Routing
from tinyllm.nn.position import Position
from tinyllm.nn.short_conv import ShortConv
from tinyllm.nn.step_recorder import Buffer, StepRecorder, Unsupported
from tinyllm.utils.signatures import make


class Block(nn.Module):
    """Pre-norm attention and feed-forward layers, each added to the residual stream (Xiong et al. 2020).

    Factories are called by ``tinyllm.utils.signatures.make``, which passes on only the arguments that a constructor
    names. A part may name:

    - attention: d_model, n_heads, n_kv_heads, max_seq_len, bias, pos, norm_eps, attn_dropout;
    - feed-forward: d_model, bias, model_d_ff; to serve as an expert, it must also name d_ff and linear;
    - mixture: ffn, d_model, n_heads, n_kv_heads, max_seq_len, bias, model_d_ff;
    - norm: dim, bias.

    Args:
        attn: factory of the attention layer.
        ffn: factory of the feed-forward layer, passed to ``moe``.
        moe: factory of the layer in the feed-forward's place: a mixture of experts, or ``ffn`` itself.
        norm: factory of the two norms.
        pos: the model's position object, for attention.
        d_model, n_heads, n_kv_heads, d_ff, max_seq_len, bias: the model's shape.
        norm_eps: eps of the model's norms, for the norms inside attention.
        dropout: on the outputs of attention and feed-forward.
        attn_dropout: on the attention weights.
        parallel_block: attention and feed-forward both read the block's input: x + attn(norm1(x)) + ffn(norm2(x))
            (GPT-NeoX, Black et al. 2022).
        short_conv: width of the causal convolutions on the inputs of attention and feed-forward, after their norms
            (``ShortConv``); 0: none.

    Raises:
        ValueError: a number is out of range, or sizes do not match.
    """

    attn: Attention
    ffn: FeedForward

    def __init__(
        self,
        *,
        attn: Callable[..., Attention],
        ffn: Callable[..., FeedForward],
        moe: Callable[..., FeedForward],
        norm: Callable[..., nn.Module],
        pos: Position,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_ff: int,
        max_seq_len: int,
        bias: bool,
        norm_eps: float,
        dropout: float,
        attn_dropout: float,
        parallel_block: bool,
        short_conv: int = 0,
    ) -> None:
        super().__init__()
        for name, size in {"n_heads": n_heads, "d_ff": d_ff}.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        for name, p in {"dropout": dropout, "attn_dropout": attn_dropout}.items():
            if not 0 <= p < 1:
                raise ValueError(f"{name}={p} must be at least 0 and less than 1")
        if short_conv and not 2 <= short_conv <= max_seq_len:
            allowed = f"from 2 to max_seq_len={max_seq_len}, or 0 for no convolution"
            raise ValueError(f"short_conv={short_conv} is out of range: it must be {allowed}")
        shape = {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "max_seq_len": max_seq_len}
        shape |= {"bias": bias}
        # A parallel block keeps both norms, as GPT-NeoX does: the parameters are the same with and without it.
        self.norm1 = make(norm, dim=d_model, bias=bias)
        self.attn = make(attn, **shape, pos=pos, norm_eps=norm_eps, attn_dropout=attn_dropout)
        self.norm2 = make(norm, dim=d_model, bias=bias)
        # With moe=none the factory is nn.moe.dense, which returns the plain feed-forward layer. The size is called
        # model_d_ff because an option's own d_ff, if set, overrides it.
        self.ffn = make(moe, ffn=ffn, **shape, model_d_ff=d_ff)
        self.dropout, self.parallel_block, self.short_conv = dropout, parallel_block, short_conv
        self.conv1 = ShortConv(dim=d_model, width=short_conv) if short_conv else None
        self.conv2 = ShortConv(dim=d_model, width=short_conv) if short_conv else None

    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        cache: LayerCache | None = None,
        doc_ids: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """The residual stream after this layer, and the routing of its mixture of experts (None: dense or evaluating).

        Args:
            start, cache, doc_ids: see :meth:`Attention.forward`.
        """
        # Passed only if given, so that an attention class without documents works in every other run.
        documents = {} if doc_ids is None else {"doc_ids": doc_ids}
        recent1, recent2 = (None, None) if cache is None or not cache.recent else cache.recent
        attn_in = _mixed(self.conv1, self.norm1(x_BTC), start, recent1)
        attn_out = self._drop(self.attn(attn_in, start=start, cache=cache, **documents))
        if self.parallel_block:
            ffn_out, routing = self.ffn(_mixed(self.conv2, self.norm2(x_BTC), start, recent2))
            return x_BTC + attn_out + self._drop(ffn_out), routing
        x_BTC = x_BTC + attn_out
        ffn_out, routing = self.ffn(_mixed(self.conv2, self.norm2(x_BTC), start, recent2))
        return x_BTC + self._drop(ffn_out), routing

    def record(self, step: StepRecorder, layer: int, stream: Buffer) -> None:
        """Record the block for decoding in C++: what it adds to the residual stream.

        Args:
            layer: number of its cache.
        """
        if self.short_conv:
            raise Unsupported(f"short_conv={self.short_conv}")
        with step.temporary():
            attn_in = step.record(self.norm1, stream)
            ffn_in = step.record(self.norm2, stream) if self.parallel_block else None
            step.record(self.attn, attn_in, layer, stream)
            step.record(self.ffn, step.record(self.norm2, stream) if ffn_in is None else ffn_in, stream)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def init_weights(self, *, std: float, residual_std: float) -> None:
        """Initialize the layers, in the order of the forward pass."""
        self.norm1.init_weights()
        self.attn.init_weights(std=std, residual_std=residual_std)
        self.norm2.init_weights()
        self.ffn.init_weights(std=std, residual_std=residual_std)
        for conv in self._convs():
            conv.init_weights()

    def _convs(self) -> list[ShortConv]:
        return [conv for conv in (self.conv1, self.conv2) if conv is not None]

    def make_cache(self, batch_size: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """An empty cache for ``max_len`` positions: that of attention, and the last inputs of the convolutions."""
        cache = self.attn.make_cache(batch_size, max_len, device=device, dtype=dtype)
        cache.recent = [
            torch.zeros(batch_size, *conv.taps_KC[1:].shape, device=device, dtype=dtype) for conv in self._convs()
        ]
        return cache

    def cache_bytes(self, max_len: int, dtype: torch.dtype) -> int:
        """Cache bytes of one sequence of ``max_len`` positions."""
        per_position = self.attn.cache_bytes_per_token(dtype)
        recent = sum(conv.taps_KC[1:].numel() for conv in self._convs())
        return self.attn.cache_slots(max_len) * per_position + recent * dtype.itemsize

    def flops_per_token(self, context: int) -> int:
        """FLOPs of the forward pass for one token that attends to ``context`` keys."""
        return self.attn.flops_per_token(context) + self.ffn.flops_per_token()

    def decode_flops_per_token(self, context: int) -> int:
        """FLOPs of decoding one token with a cache; ``context`` counts the token itself."""
        return self.attn.decode_flops_per_token(context) + self.ffn.flops_per_token()


def _mixed(conv: ShortConv | None, x_BTC: Tensor, start: int | Tensor, recent: Tensor | None) -> Tensor:
    if conv is None:
        return x_BTC
    mixed: Tensor = conv(x_BTC, start=start, recent_BMC=recent)
    return mixed
