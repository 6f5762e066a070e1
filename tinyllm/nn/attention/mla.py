"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, §2.1)."""

import torch
from torch import Tensor, nn

from tinyllm.nn.attention.base import MaskedAttention
from tinyllm.nn.attention.masking import AttentionMask
from tinyllm.nn.attention.mha import resolve_head_dim
from tinyllm.nn.cache import LayerCache
from tinyllm.nn.linear import Linear, NeverPackedLinear
from tinyllm.nn.norm import RMSNorm
from tinyllm.nn.position import Position


class MLA(MaskedAttention):
    """Multi-head latent attention: the cache holds one latent per token for all heads, and one rotated key.

    c = norm(W_dkv·x). Head h has the key [W_uk·c; RoPE(W_kr·x)] and the value W_uv·c; its query comes from x or from a
    latent of its own. Training and prefill compute keys and values from c and attend as multi-head attention does.
    Decoding attends in the latent space (§2.1.2): since q·(W_uk·c) = (W_ukᵀ·q)·c, queries are multiplied with W_ukᵀ,
    the latents are summed, and W_uv is applied to the sum. No keys or values are computed for cached tokens, and all
    heads share the latents as in multi-query attention. Both forms read the same weights; nothing derived is stored
    that could become stale.

    With ``bias``, projections from and to the residual stream have one, as in DeepSeek-V3.

    Args:
        kv_latent_dim: size of c; None: 4·d_model/n_heads.
        q_latent_dim: size of the latent of queries; None: queries are projected from x.
        rope_head_dim: size of the rotated part of queries and keys; None: half of d_model/n_heads with rotary
            positions, else 0.
        nope_head_dim: size of the part that is not rotated; None: d_model/n_heads.
        v_head_dim: size of the values; None: d_model/n_heads.
        latent_norm_eps: eps of the norms of the latents.
        window, sinks, softcap: see ``AttentionMask``.

    Raises:
        ValueError: a number out of range, or a rotated part without rotary positions.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        bias: bool,
        attn_dropout: float,
        kv_latent_dim: int | None,
        q_latent_dim: int | None,
        rope_head_dim: int | None,
        nope_head_dim: int | None,
        v_head_dim: int | None,
        latent_norm_eps: float,
        window: int,
        sinks: int,
        softcap: float,
        pos: Position,
    ) -> None:
        super().__init__()
        sizes = {"nope_head_dim": nope_head_dim, "v_head_dim": v_head_dim, "kv_latent_dim": kv_latent_dim}
        for name, size in (sizes | {"q_latent_dim": q_latent_dim}).items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if rope_head_dim is None or None in sizes.values():
            resolve_head_dim(None, d_model=d_model, n_heads=n_heads)
        head_dim = d_model // n_heads
        self.n_heads = n_heads
        self.nope_dim = head_dim if nope_head_dim is None else nope_head_dim
        self.v_dim = head_dim if v_head_dim is None else v_head_dim
        self.latent_dim = 4 * head_dim if kv_latent_dim is None else kv_latent_dim
        self.rotary, self.rope_dim = _rotary(rope_head_dim, head_dim, pos)
        self.mask = AttentionMask(window=window, sinks=sinks, softcap=softcap)
        self.attn_dropout = attn_dropout
        self.cache_shapes = [(1, self.latent_dim + self.rope_dim)]
        self.same_head_dim = self.v_dim == self.nope_dim + self.rope_dim
        # in both forms: the latent form computes the same scores, although its vectors are longer
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5 * pos.score_factor
        d_query = n_heads * (self.nope_dim + self.rope_dim)
        self.q: nn.Module
        if q_latent_dim is None:
            self.q = Linear(d_in=d_model, d_out=d_query, bias=bias)
        else:
            self.q_down = Linear(d_in=d_model, d_out=q_latent_dim, bias=bias)
            self.q_norm = RMSNorm(dim=q_latent_dim, eps=latent_norm_eps)
            self.q_up = Linear(d_in=q_latent_dim, d_out=d_query, bias=False)
        self.compresses_q = q_latent_dim is not None
        self.kv_down = Linear(d_in=d_model, d_out=self.latent_dim + self.rope_dim, bias=bias)
        self.kv_norm = RMSNorm(dim=self.latent_dim, eps=latent_norm_eps)
        # Decoding multiplies queries and sums with this weight itself, which would be impossible if it were packed.
        self.kv_up = NeverPackedLinear(d_in=self.latent_dim, d_out=n_heads * (self.nope_dim + self.v_dim), bias=False)
        self.out = Linear(d_in=n_heads * self.v_dim, d_out=d_model, bias=bias)

    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        cache: LayerCache | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        q_BTC = self.q_up(self.q_norm(self.q_down(x_BTC))) if self.compresses_q else self.q(x_BTC)
        q_nope_BTHD, q_rope_BTHD = q_BTC.unflatten(-1, (self.n_heads, -1)).split((self.nope_dim, self.rope_dim), dim=-1)
        latent_BTL, k_rope_BTD = self.kv_down(x_BTC).split((self.latent_dim, self.rope_dim), dim=-1)
        latent_BTL = self.kv_norm(latent_BTL)
        q_nope, q_rope, k_rope = q_nope_BTHD.transpose(1, 2), q_rope_BTHD.transpose(1, 2), k_rope_BTD[:, None]
        if self.rotary is not None:
            q_rope, k_rope = self.rotary(q_rope_BTHD, start), self.rotary(k_rope_BTD[:, :, None], start)
        seen, visible_B1TS = None, None
        if cache is not None:
            new_B1TL = torch.cat((latent_BTL[:, None], k_rope), dim=-1)
            (seen,), visible_B1TS = cache.update(new_B1TL, start=start)
        # Training and prefill attend to new tokens only. Computing their keys and values once is cheaper than attending
        # in the latent space, where each score takes latent_dim + rope_dim products instead of nope_dim + rope_dim.
        if seen is None or (isinstance(start, int) and start == 0):
            up_BTHD = self.kv_up(latent_BTL).unflatten(-1, (self.n_heads, -1))
            k_nope, v_BHTD = up_BTHD.transpose(1, 2).split((self.nope_dim, self.v_dim), dim=-1)
            k_BHTD = torch.cat((k_nope, k_rope.expand(-1, self.n_heads, -1, -1)), dim=-1)
            q_BHTD = torch.cat((q_nope, q_rope), dim=-1)
            y_BHTD = self.attend(q_BHTD, k_BHTD, v_BHTD, visible=visible_B1TS, doc_ids=doc_ids)
        else:
            w_uk_HDL, w_uv_HDL = (
                self.kv_up.matrix().unflatten(0, (self.n_heads, -1)).split((self.nope_dim, self.v_dim), dim=1)
            )
            query_BHTL = torch.cat((q_nope @ w_uk_HDL, q_rope), dim=-1)
            # Values are the whole cache entries; the rotated keys in them are cut off after the sum. So keys and values
            # are the same buffer, and nothing is copied.
            sum_BHTL = self.attend(query_BHTL, seen, seen, visible=visible_B1TS)
            y_BHTD = sum_BHTL[..., : self.latent_dim] @ w_uv_HDL.transpose(1, 2)
        return self.out(y_BHTD.transpose(1, 2).flatten(2))

    def init_weights(self, *, std: float, residual_std: float) -> None:
        for module in (*self._query_parts(), self.kv_down, self.kv_norm, self.kv_up):
            if isinstance(module, Linear):
                module.init_weights(std)
            elif isinstance(module, RMSNorm):
                module.init_weights()
        self.out.init_weights(residual_std)

    def _query_parts(self) -> list[nn.Module]:
        return [self.q_down, self.q_norm, self.q_up] if self.compresses_q else [self.q]

    def _projection_flops(self) -> int:
        queries = sum(part.flops() for part in self._query_parts() if isinstance(part, Linear))
        return queries + self.kv_down.flops() + self.out.flops()

    def flops_per_token(self, context: int) -> int:
        scores_and_values = 2 * self.n_heads * (self.nope_dim + self.rope_dim + self.v_dim)
        return self._projection_flops() + self.kv_up.flops() + scores_and_values * self.mask.keys_seen(context)

    def decode_flops_per_token(self, context: int) -> int:
        """FLOPs of decoding one token in the latent space: keys and values are as wide as a cache entry."""
        scores_and_values = 2 * 2 * self.n_heads * (self.latent_dim + self.rope_dim)
        return self._projection_flops() + self.kv_up.flops() + scores_and_values * self.mask.keys_seen(context)


def _rotary(rope_head_dim: int | None, head_dim: int, pos: Position) -> tuple[nn.Module | None, int]:
    """The rotation, and the size of the rotated part."""
    size = head_dim // 2 if rope_head_dim is None else rope_head_dim
    if size < 0:
        raise ValueError(f"rope_head_dim={size} must be at least 0")
    try:
        rotary = pos.rotary(size) if size else None
    except ValueError as error:
        half = " (half of d_model / n_heads)" if rope_head_dim is None else ""
        raise ValueError(
            f"rope_head_dim={size}{half} is odd, and rotary positions rotate pairs: choose an even size"
        ) from error
    if rotary is None and rope_head_dim:
        raise ValueError(f"rope_head_dim={rope_head_dim} needs rotary positions (pos=rope); leave it null without them")
    return rotary, size if rotary is not None else 0
