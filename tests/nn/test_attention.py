"""Attention layers against their formulas written out, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tinyllm
from tinyllm.config.build import build
from tinyllm.errors import UserError
from tinyllm.interop.architecture import architecture_of
from tinyllm.nn.attention.base import Attention
from tinyllm.nn.attention.mha import GQA, MHA, MQA
from tinyllm.nn.attention.mla import MLA
from tinyllm.nn.position import Rope, Rotary

MASKS: list[dict[str, Any]] = [
    {"window": 0, "sinks": 0, "softcap": 0.0},
    {"window": 3, "sinks": 0, "softcap": 0.0},
    {"window": 2, "sinks": 2, "softcap": 0.0},
    {"window": 0, "sinks": 0, "softcap": 0.5},
    {"window": 3, "sinks": 1, "softcap": 0.5},
]
LENGTH = 9


def layer(kind: type[Attention], **changes: Any) -> Attention:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 24, "n_heads": 4, "bias": False, "attn_dropout": 0.0}
    sizes |= MASKS[0] | {"pos": Rope(max_seq_len=64, base=100.0)}
    if kind is MLA:
        names = ("kv_latent_dim", "q_latent_dim", "rope_head_dim", "nope_head_dim", "v_head_dim")
        sizes |= dict.fromkeys(names) | {"latent_norm_eps": 1e-6, "rope_head_dim": 4}
    else:
        sizes |= {"head_dim": None, "qk_norm": False, "norm_eps": 1e-5}
    if kind is GQA:
        sizes["n_kv_heads"] = 2
    built = kind(**sizes | changes)
    built.init_weights(std=0.5, residual_std=0.5)
    return built.double()


def rotated(x_TD: Tensor, rotary: Rotary) -> Tensor:
    """Rotation written as complex numbers (x_i, x_{i+D/2}) times exp(i·angle)."""
    cos, sin = rotary.cos[: len(x_TD)].double(), rotary.sin[: len(x_TD)].double()
    half = x_TD.shape[-1] // 2
    z = torch.complex(x_TD[:, :half], x_TD[:, half:]) * torch.complex(cos[:, half:], sin[:, half:])
    return torch.cat((z.real, z.imag), dim=-1)


def attend_each(q_TD: Tensor, k_TD: Tensor, v_TE: Tensor, mask: dict[str, Any]) -> Tensor:
    """Attention computed query by query, over the keys that each sees."""
    rows = []
    for i in range(len(q_TD)):
        keys = [j for j in range(i + 1) if not mask["window"] or j > i - mask["window"] or j < mask["sinks"]]
        scores = k_TD[keys] @ q_TD[i] / q_TD.shape[-1] ** 0.5
        if mask["softcap"]:
            scores = mask["softcap"] * torch.tanh(scores / mask["softcap"])
        rows.append(scores.softmax(0) @ v_TE[keys])
    return torch.stack(rows)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("head_dim", [None, 10])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", [MHA, GQA, MQA])
def test_heads_equal_the_formula(kind: type[Any], qk_norm: bool, head_dim: int | None, mask: dict[str, Any]) -> None:
    attn = layer(kind, qk_norm=qk_norm, head_dim=head_dim, **mask)
    size, groups = head_dim or 6, {MHA: 4, GQA: 2, MQA: 1}[kind]
    assert attn.qkv.weight.shape == ((4 + 2 * groups) * size, 24) and attn.out.weight.shape == (24, 4 * size)
    if qk_norm:
        attn.q_norm.weight.data = torch.linspace(0.5, 2, size, dtype=torch.float64)
    x = torch.randn(1, LENGTH, 24, dtype=torch.float64)
    q, k, v = (x[0] @ attn.qkv.weight.t()).split((4 * size, groups * size, groups * size), dim=1)
    heads = []
    for head in range(4):
        group = head * groups // 4
        parts = [q[:, size * head :][:, :size], k[:, size * group :][:, :size]]
        if qk_norm:
            parts = [norm(p, w, 1e-5) for p, w in zip(parts, (attn.q_norm.weight, attn.k_norm.weight), strict=True)]
        heads.append(attend_each(*(rotated(p, attn.rotary) for p in parts), v[:, size * group :][:, :size], mask))
    check(attn, x, torch.cat(heads, 1) @ attn.out.weight.t())


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("q_latent_dim", [None, 14])
def test_mla_equals_the_formula(q_latent_dim: int | None, mask: dict[str, Any]) -> None:
    """DeepSeek-V2, equations 9 to 19, head by head."""
    attn: Any = layer(MLA, q_latent_dim=q_latent_dim, kv_latent_dim=13, nope_head_dim=7, v_head_dim=5, **mask)
    x = torch.randn(1, LENGTH, 24, dtype=torch.float64)
    if q_latent_dim is None:
        queries = x[0] @ attn.q.weight.t()
    else:
        queries = norm(x[0] @ attn.q_down.weight.t(), attn.q_norm.weight, 1e-6) @ attn.q_up.weight.t()
    c, k_rope = (x[0] @ attn.kv_down.weight.t()).split((13, 4), dim=1)
    c, k_rope = norm(c, attn.kv_norm.weight, 1e-6), rotated(k_rope, attn.rotary)
    heads = []
    for head in range(4):
        q_nope, q_rope = queries[:, 11 * head :][:, :11].split((7, 4), dim=1)
        w_uk, w_uv = attn.kv_up.weight[12 * head :][:12].split((7, 5))
        q = torch.cat((q_nope, rotated(q_rope, attn.rotary)), dim=1)
        heads.append(attend_each(q, torch.cat((c @ w_uk.t(), k_rope), dim=1), c @ w_uv.t(), mask))
    check(attn, x, torch.cat(heads, 1) @ attn.out.weight.t())


def check(attn: Any, x: Tensor, expected: Tensor) -> None:
    """Compare the output and the gradient of every parameter."""
    found = attn(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(found)
    parameters = list(attn.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters, upstream),
        torch.autograd.grad(expected, parameters, upstream),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kind", [MHA, GQA, MQA, MLA])
def test_flops_count_only_visible_keys(kind: type[Any], mask: dict[str, Any]) -> None:
    """torch's counter agrees for decoding beyond the window and for a sequence within it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    attn = layer(kind, **mask)
    cache = attn.make_cache(1, 30, device=torch.device("cpu"), dtype=torch.float64)
    x = torch.randn(1, 30, 24, dtype=torch.float64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        attn(x[:, :29], start=0, cache=cache)
        with FlopCounterMode(display=False) as counter:
            attn(x[:, 29:], start=29, cache=cache)
        assert counter.get_total_flops() == attn.decode_flops_per_token(30)
        with FlopCounterMode(display=False) as counter:
            attn(x[:, :3])
        assert counter.get_total_flops() == 3 * attn.flops_per_token(3)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kind", [MHA, MLA])
def test_dropout_acts_only_in_training(kind: type[Any], mask: dict[str, Any]) -> None:
    attn = layer(kind, **mask | {"attn_dropout": 0.5})
    x = torch.randn(1, LENGTH, 24, dtype=torch.float64)
    assert not torch.allclose(attn(x), attn(x))
    assert torch.equal(attn.eval()(x), layer(kind, **mask)(x))


@pytest.mark.parametrize("attn", ["mha", "gqa", "mqa", "mla"])
def test_sinks_without_a_window_are_refused(attn: str) -> None:
    with pytest.raises(UserError, match=r"model\.block\.attn\.window=0 turns it off"):
        tinyllm.compose(f"attn={attn}", "model.block.attn.sinks=4")
    tinyllm.compose(f"attn={attn}", "model.block.attn.sinks=4", "model.block.attn.window=8")


@pytest.mark.parametrize("kind", [MHA, GQA, MQA])
def test_qk_norm_has_its_own_eps(kind: type[Any]) -> None:
    own, usual = (layer(kind, qk_norm=True, qk_norm_eps=eps) for eps in (1e-2, None))
    assert own.q_norm.eps == own.k_norm.eps == 1e-2 and usual.q_norm.eps == usual.k_norm.eps == 1e-5


@pytest.mark.parametrize("attn", ["mha", "gqa", "mqa"])
def test_qk_norm_eps_from_the_command_line(attn: str) -> None:
    key = "model.block.attn.qk_norm_eps"
    with pytest.raises(UserError, match=r"no effect here \(.*qk_norm_eps=0.01\): model.block.attn.qk_norm=false turns"):
        tinyllm.compose(f"attn={attn}", f"{key}=0.01")
    on = (f"attn={attn}", "model.block.attn.qk_norm=true")
    model: Any = build(tinyllm.compose(*on, f"{key}=0.01").model, path="model", vocab_size=9)
    assert model.layers()[0].attn.q_norm.eps == 0.01 and model.norm.eps != 0.01
    with pytest.raises(UserError, match=r"\(model.block.attn.qk_norm_eps=0\)"):
        build(tinyllm.compose(*on, f"{key}=0").model, path="model", vocab_size=9)
    with pytest.raises(UserError, match=r"cannot be exported \(model.block.attn.qk_norm_eps=0.01\)"):
        architecture_of(model)


def test_qk_norm_under_mla_is_refused() -> None:
    with pytest.raises(UserError, match="unknown key"):
        tinyllm.compose("attn=mla", "model.block.attn.qk_norm=true")
