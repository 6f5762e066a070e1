"""Activations, feed-forward sizes, positions, and ``make``."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tinyllm.nn.attention.mha import GQA
from tinyllm.nn.feedforward import ACTIVATIONS, GATES, GLU, MLP
from tinyllm.nn.position import Learned, NoPosition, Position, Rope, Sinusoidal
from tinyllm.utils.signatures import make

TORCH_MODULES = {
    "gelu": torch.nn.GELU(),
    "gelu_tanh": torch.nn.GELU("tanh"),
    "relu": torch.nn.ReLU(),
    "silu": torch.nn.SiLU(),
    "mish": torch.nn.Mish(),
    "selu": torch.nn.SELU(),
    "celu": torch.nn.CELU(),
    "elu": torch.nn.ELU(),
    "leaky_relu": torch.nn.LeakyReLU(),
    "sigmoid": torch.nn.Sigmoid(),
    "tanh": torch.nn.Tanh(),
}


@pytest.mark.parametrize("name", [*TORCH_MODULES, "relu2"])
def test_activation_equals_torchs(name: str) -> None:
    x = torch.linspace(-5, 5, 101)
    expected = torch.where(x > 0, x * x, 0.0) if name == "relu2" else TORCH_MODULES[name](x)
    assert torch.equal(ACTIVATIONS[name](x), expected)
    mlp = MLP(d_model=8, model_d_ff=16, bias=True, activation=name)
    mlp.init_weights(std=0.5, residual_std=0.5)
    h = torch.randn(3, 8)
    by_hand = F.linear(ACTIVATIONS[name](F.linear(h, mlp.up.weight, mlp.up.bias)), mlp.down.weight, mlp.down.bias)
    assert torch.equal(mlp(h)[0], by_hand)


def test_every_documented_activation_exists() -> None:
    assert set(ACTIVATIONS) == {*TORCH_MODULES, "relu2"}
    assert set(GATES) == {"silu", "gelu", "relu", "sigmoid"}


@pytest.mark.parametrize("gate", list(GATES))
def test_glu_equals_the_formula(gate: str) -> None:
    glu = GLU(d_model=8, model_d_ff=24, bias=False, gate=gate)
    glu.init_weights(std=0.5, residual_std=0.5)
    x = torch.randn(3, 8)
    w_gate, w_up = glu.gate_up.weight.chunk(2)
    expected = (GATES[gate](x @ w_gate.t()) * (x @ w_up.t())) @ glu.down.weight.t()
    torch.testing.assert_close(glu(x)[0], expected)


@pytest.mark.parametrize("d_ff", [512, 1024, 1536, 3072, 6400, 8192, 16512])
def test_glu_has_as_many_parameters_as_the_mlp(d_ff: int) -> None:
    with torch.device("meta"):
        glu = GLU(d_model=128, model_d_ff=d_ff, bias=False, gate="silu")
        mlp = MLP(d_model=128, model_d_ff=d_ff, bias=False, activation="gelu")
    hidden = glu.down.in_features
    assert hidden % 8 == 0 and abs(hidden - 2 * d_ff / 3) <= 4
    counts = [sum(p.numel() for p in part.parameters()) for part in (glu, mlp)]
    assert abs(counts[0] / counts[1] - 1) < 0.02


def test_own_d_ff_overrides_the_models() -> None:
    assert GLU(d_model=8, model_d_ff=24, bias=False, gate="silu", d_ff=20).down.in_features == 20
    assert MLP(d_model=8, model_d_ff=24, bias=False, activation="relu", d_ff=20).down.in_features == 20


def test_unknown_names_and_invalid_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="activation=swish is not known: choose one of gelu gelu_tanh relu"):
        MLP(d_model=8, model_d_ff=24, bias=False, activation="swish")
    with pytest.raises(ValueError, match="gate=tanh is not known: choose one of silu gelu relu sigmoid"):
        GLU(d_model=8, model_d_ff=24, bias=False, gate="tanh")
    with pytest.raises(ValueError, match="d_ff=0 must be at least 1"):
        MLP(d_model=8, model_d_ff=24, bias=False, activation="relu", d_ff=0)
    common = {"bias": False, "attn_dropout": 0.0, "qk_norm": False, "norm_eps": 1e-5, "pos": NoPosition()}
    common |= {"head_dim": None, "window": 0, "sinks": 0, "softcap": 0.0}
    with pytest.raises(ValueError, match="d_model=32 is not divisible by n_heads=5"):
        GQA(d_model=32, n_heads=5, n_kv_heads=1, **common)
    for kv_heads in (3, 0, 8):
        with pytest.raises(ValueError, match=f"n_kv_heads={kv_heads} does not divide n_heads=4"):
            GQA(d_model=32, n_heads=4, n_kv_heads=kv_heads, **common)
    for wrong, message in (
        ({"head_dim": 0}, "head_dim=0 must be at least 1"),
        ({"window": -1}, "window=-1 must be at least 0"),
        ({"softcap": -2.0}, "softcap=-2.0 must be at least 0"),
        ({"sinks": 4}, "sinks=4 needs a window"),
    ):
        with pytest.raises(ValueError, match=message):
            GQA(d_model=32, n_heads=4, n_kv_heads=2, **common | wrong)
    with pytest.raises(ValueError, match="head_dim=5 is odd"):
        Rope(max_seq_len=8, base=10000.0).rotary(5)


def test_rope_equals_complex_multiplication() -> None:
    """Pairs (x_i, x_{i+dim/2}) as complex numbers, times exp(i·position·base^(−2i/dim))."""
    rotary = Rope(max_seq_len=50, base=100.0).rotary(6)
    assert rotary is not None
    x = torch.randn(2, 7, 3, 6, requires_grad=True)
    turned = rotary(x, 40)
    z = torch.complex(x[..., :3].double(), x[..., 3:].double())
    angle = torch.arange(40, 47)[:, None, None] * 100.0 ** (-torch.arange(0, 6, 2) / 6).double()
    z = z * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat((z.real, z.imag), -1).transpose(1, 2)
    torch.testing.assert_close(turned.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(turned)
    found, expected_grads = (
        torch.autograd.grad(y, x, g, retain_graph=True)[0]
        for y, g in ((turned, upstream), (expected, upstream.double()))
    )
    torch.testing.assert_close(found, expected_grads, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with torch.no_grad():
            alone = rotary(x.to(dtype), 40)
        assert alone.dtype == dtype and torch.equal(alone, rotary(x.to(dtype), 40))


@pytest.mark.parametrize("kind", [Learned, Sinusoidal, Rope])
def test_rows_can_start_at_different_positions(kind: type[Position]) -> None:
    shape: dict[str, Any] = {"d_model": 8, "max_seq_len": 20, "base": 10000.0}
    pos = make(kind, **shape)
    pos.init_weights(1.0)
    starts = torch.tensor([0, 11, 4])
    x = torch.randn(3, 5, 8)
    found = pos.embed(x, starts)
    assert torch.equal(found, torch.cat([pos.embed(x[row : row + 1], int(at)) for row, at in enumerate(starts)]))
    rotary = pos.rotary(8)
    if rotary is not None:
        heads = x[:, :, None]
        found = rotary(heads, starts)
        assert torch.equal(found, torch.cat([rotary(heads[row : row + 1], int(at)) for row, at in enumerate(starts)]))


def test_rope_scores_depend_only_on_the_distance() -> None:
    rotary = Rope(max_seq_len=64, base=10000.0).rotary(8)
    assert rotary is not None
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    scores = [(rotary(q, i + 5) * rotary(k, i)).sum() for i in (0, 17, 50)]
    torch.testing.assert_close(scores[1:], [scores[0]] * 2, rtol=1e-4, atol=1e-5)


def test_tables_are_shared_stay_fp32_and_are_not_saved() -> None:
    rope = Rope(max_seq_len=16, base=10000.0)
    assert rope.rotary(8) is rope.rotary(8) is not rope.rotary(4)
    before = rope.rotary(8).cos.clone()
    rope.to(torch.bfloat16)
    assert rope.rotary(8).cos.dtype == torch.float32 and torch.equal(rope.rotary(8).cos, before)
    assert not rope.state_dict()
    assert not Sinusoidal(d_model=8, max_seq_len=16, base=10000.0).state_dict()


@pytest.mark.parametrize("d_model", [8, 7])
def test_sinusoidal_table(d_model: int) -> None:
    """The formula of Vaswani et al. 2017, §3.5, entry by entry."""
    import math

    table = Sinusoidal(d_model=d_model, max_seq_len=20, base=10000.0).embed(torch.zeros(1, 9, d_model), 11)[0]
    for row, position in enumerate(range(11, 20)):
        for column in range(d_model):
            angle = position / 10000 ** ((column - column % 2) / (d_model + d_model % 2))
            assert table[row, column] == pytest.approx((math.cos if column % 2 else math.sin)(angle), abs=1e-6)


def test_learned_positions_begin_at_start() -> None:
    pos = Learned(d_model=4, max_seq_len=10)
    pos.init_weights(1.0)
    assert torch.equal(pos.embed(torch.zeros(1, 3, 4), 7)[0], pos.table.weight[7:])
    assert NoPosition().rotary(3) is None and pos.rotary(4) is None


def test_make_passes_arguments_that_are_named_and_not_bound() -> None:
    def part(*, a: int, b: int = 5, c: int | None = None) -> tuple[int, int, int | None]:
        return a, b, c

    assert make(part, a=1, d=9) == (1, 5, None)
    assert make(partial(part, a=1), a=2, b=3) == (1, 3, None)
    assert make(partial(partial(part, a=1), c=None), a=2, c=4) == (1, 5, None)
