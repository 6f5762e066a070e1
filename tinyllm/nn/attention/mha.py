"""Multi-head attention (Vaswani et al. 2017)."""

from tinyllm.nn.attention.heads import HeadsAttention
from tinyllm.nn.position import Position


class MHA(HeadsAttention):
    """Every query head has keys and values of its own."""

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
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            bias=bias,
            attn_dropout=attn_dropout,
            head_dim=head_dim,
            qk_norm=qk_norm,
            window=window,
            sinks=sinks,
            softcap=softcap,
            norm_eps=norm_eps,
            pos=pos,
            qk_norm_eps=qk_norm_eps,
            qkv_bias=qkv_bias,
            nope=nope,
        )
