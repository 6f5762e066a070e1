"""MLA against transformers' DeepseekV3, and its two forms against each other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tinyllm.nn.attention.mla import MLA
from tinyllm.nn.position import NoPosition, Rope


def mla(rope: bool = True, *, std: float = 0.2, **changes: Any) -> MLA:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 48, "n_heads": 4, "bias": False, "attn_dropout": 0.0, "latent_norm_eps": 1e-6}
    names = ("kv_latent_dim", "q_latent_dim", "rope_head_dim", "nope_head_dim", "v_head_dim")
    sizes |= dict.fromkeys(names) | {"window": 0, "sinks": 0, "softcap": 0.0}
    layer = MLA(**sizes | changes, pos=Rope(max_seq_len=64, base=10000.0) if rope else NoPosition())
    layer.init_weights(std=std, residual_std=std)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer


VARIANTS: list[dict[str, Any]] = [
    {},
    {"rope": False},
    {"q_latent_dim": 20},
    {"q_latent_dim": 20, "bias": True, "kv_latent_dim": 17, "rope_head_dim": 4, "nope_head_dim": 10, "v_head_dim": 6},
    {"rope_head_dim": 0, "v_head_dim": 24},
]


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"q_lora_rank": None, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
        {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 4, "qk_nope_head_dim": 12, "v_head_dim": 10},
        {"q_lora_rank": 24, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 24},
    ],
    ids=str,
)
def test_equals_transformers_deepseek_v3(sizes: dict[str, Any], interleave: bool) -> None:
    """With the same weights. With rope_interleave, transformers rotates the pairs (x_2i, x_2i+1) instead of
    (x_i, x_i+r/2), which permutes rows of the weights."""
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    biased = sizes["q_lora_rank"] is not None  # transformers has no bias on queries that are not compressed
    config = DeepseekV3Config(
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=biased,
        rope_interleave=interleave,
        max_position_embeddings=64,
        attn_implementation="eager",
        **sizes,
    )
    reference = DeepseekV3Attention(config, 0).eval()
    attn = mla(
        bias=biased,
        q_latent_dim=sizes["q_lora_rank"],
        kv_latent_dim=sizes["kv_lora_rank"],
        rope_head_dim=sizes["qk_rope_head_dim"],
        nope_head_dim=sizes["qk_nope_head_dim"],
        v_head_dim=sizes["v_head_dim"],
    )
    rope, nope = sizes["qk_rope_head_dim"], sizes["qk_nope_head_dim"]
    order = torch.arange(rope).view(2, -1).t().flatten() if interleave else torch.arange(rope)
    weights = attn.state_dict()
    q = "q_up" if biased else "q"
    by_head = weights[f"{q}.weight"].unflatten(0, (4, -1))
    permuted = torch.cat((by_head[:, :nope], by_head[:, nope:][:, order]), 1).flatten(0, 1)
    names = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj", "q": "q_proj"}
    names |= {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "out": "o_proj"}
    weights[f"{q}.weight"] = permuted
    for kind in ("weight", "bias") if biased else ("weight",):
        down = weights[f"kv_down.{kind}"]
        weights[f"kv_down.{kind}"] = torch.cat((down[:-rope], down[-rope:][order]))
    reference.load_state_dict({f"{names[n.split('.')[0]]}.{n.split('.')[1]}": w for n, w in weights.items()})

    x = torch.randn(2, 11, 48)
    angles = DeepseekV3RotaryEmbedding(config)(x, torch.arange(11)[None])
    causal = torch.full((11, 11), float("-inf")).triu(1)[None, None]
    expected = reference(x, position_embeddings=angles, attention_mask=causal)[0]
    torch.testing.assert_close(attn(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        cache = attn.make_cache(2, 11, device=torch.device("cpu"), dtype=torch.float32)
        steps = [attn(x[:, i : i + 1], start=i, cache=cache) for i in range(11)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("mask", [{}, {"window": 3}, {"window": 4, "sinks": 2, "softcap": 1.0}], ids=str)
def test_decoding_in_the_latent_space_equals_the_full_forward(variant: dict[str, Any], mask: dict[str, Any]) -> None:
    """Token by token, in pieces, and with rows at different positions."""
    layer = mla(**variant, **mask).double()
    x = torch.randn(2, 12, 48, dtype=torch.float64)
    with torch.no_grad():
        full = layer(x)
        for pieces in ([1] * 12, [5] + [1] * 7, [4, 3, 5], [12]):
            cache = layer.make_cache(2, 12, device=x.device, dtype=x.dtype)
            found, start = [], 0
            for n in pieces:
                found.append(layer(x[:, start : start + n], start=start, cache=cache))
                start += n
            torch.testing.assert_close(torch.cat(found, 1), full, rtol=1e-6, atol=1e-6)  # the tables of RoPE are fp32
        cache = layer.make_cache(2, 12, device=x.device, dtype=x.dtype)
        lengths = [7, 3]
        for row, n in enumerate(lengths):
            layer(x[row : row + 1, :n], start=0, cache=cache.rows(row, row + 1))
        for n in (1, 1, 3):
            piece = torch.stack([x[row, length : length + n] for row, length in enumerate(lengths)])
            found_each = layer(piece, start=torch.tensor(lengths), cache=cache)
            expected = torch.stack([full[row, length : length + n] for row, length in enumerate(lengths)])
            torch.testing.assert_close(found_each, expected, rtol=1e-6, atol=1e-6)
            lengths = [length + n for length in lengths]


def test_equals_the_equations() -> None:
    """DeepSeek-V2, equations 9 to 19 without dropout, head by head."""
    layer = mla(rope=False, q_latent_dim=20, nope_head_dim=10, v_head_dim=6, kv_latent_dim=16).double()
    x = torch.randn(1, 7, 48, dtype=torch.float64)

    def norm(z: Tensor, weight: Tensor) -> Tensor:
        return z / (z.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    c_q = norm(x @ layer.q_down.weight.t(), layer.q_norm.weight)
    c_kv = norm(x @ layer.kv_down.weight.t(), layer.kv_norm.weight)
    outs = []
    for head in range(4):
        q = c_q @ layer.q_up.weight[10 * head : 10 * head + 10].t()
        k = c_kv @ layer.kv_up.weight[16 * head : 16 * head + 10].t()
        v = c_kv @ layer.kv_up.weight[16 * head + 10 : 16 * head + 16].t()
        scores = (q @ k.transpose(1, 2) / 10**0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
        outs.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(layer(x), torch.cat(outs, -1) @ layer.out.weight.t())


def test_default_sizes() -> None:
    layer = mla()
    assert (layer.latent_dim, layer.rope_dim, layer.nope_dim, layer.v_dim) == (4 * 12, 6, 12, 12)
    assert layer.scale == (12 + 6) ** -0.5
    assert mla(rope=False).rope_dim == 0
    assert not hasattr(layer, "q_down") and hasattr(mla(q_latent_dim=8), "q_down")


def test_decoding_computes_no_keys_per_head_and_caches_only_the_latent() -> None:
    layer = mla(kv_latent_dim=16, rope_head_dim=4)
    cache = layer.make_cache(3, 64, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert cache.nbytes() == 3 * 64 * (16 + 4) * 2 == 3 * 64 * layer.cache_bytes_per_token(torch.bfloat16)
    assert len(cache.buffers) == 1

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple | list) else [out]
            views = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
            sizes.extend(
                t.numel() for t in made if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in views
            )
            return out

    cache = layer.make_cache(1, 64, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        layer(torch.randn(1, 63, 48), cache=cache)
        with Sizes():
            layer(torch.randn(1, 1, 48), start=63, cache=cache)
    # keys and values of the heads would be 64 · 4 · 12 numbers each
    assert max(sizes) <= 4 * (16 + 4)


def test_flops_of_both_forms_equal_torchs_count() -> None:
    for layer in (mla(), mla(q_latent_dim=20, v_head_dim=6), mla(rope=False)):
        x = torch.randn(2, 9, 48)
        cache = layer.make_cache(2, 10, device=x.device, dtype=x.dtype)
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with FlopCounterMode(display=False) as counter:
                layer(x, cache=cache)
            assert counter.get_total_flops() == 2 * 9 * layer.flops_per_token(9)
            with FlopCounterMode(display=False) as counter:
                layer(x[:, :1], start=9, cache=cache)
            assert counter.get_total_flops() == 2 * layer.decode_flops_per_token(10)


def test_no_derived_state_can_become_stale() -> None:
    """The state dict holds the parameters only, and decoding follows a change of them at once."""
    layer = mla(q_latent_dim=20)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    x = torch.randn(1, 6, 48)

    def decoded() -> Tensor:
        cache = layer.make_cache(1, 6, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            return torch.cat([layer(x[:, i : i + 1], start=i, cache=cache) for i in range(6)], 1)

    before = decoded()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(decoded(), before, atol=1e-3)
    torch.testing.assert_close(decoded(), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": False, "rope_head_dim": 4}, "rope_head_dim=4 needs rotary positions"),
        ({"rope_head_dim": 5}, "rope_head_dim=5 is odd"),
        ({"d_model": 40}, r"rope_head_dim=5 \(half of d_model / n_heads\) is odd"),
        ({"rope_head_dim": -2}, "rope_head_dim=-2 must be at least 0"),
        ({"nope_head_dim": 0}, "nope_head_dim=0 must be at least 1"),
        ({"kv_latent_dim": 0}, "kv_latent_dim=0 must be at least 1"),
        ({"q_latent_dim": 0}, "q_latent_dim=0 must be at least 1"),
        ({"d_model": 50}, "d_model=50 is not divisible by n_heads=4"),
        ({"sinks": 2}, "sinks=2 needs a window"),
        ({"latent_norm_eps": 0.0}, "eps=0.0 must be at least 1e-20"),
    ],
    ids=str,
)
def test_invalid_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mla(**changes)
