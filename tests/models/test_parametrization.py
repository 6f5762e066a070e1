"""muP against formulas written by hand; at the base width it equals the standard parametrization."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import tinyllm
from tests.support.options import CONTEXT, Choice, built, combinations_of_all, everyday, options, params, small
from tinyllm.data.batch import Batch
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Decoder
from tinyllm.models.parametrization import MuP
from tinyllm.programs.builders import build_optimizer
from tinyllm.training.objectives.next_token import NextToken

M = 4
"""Width of the model relative to its base."""
MUP = MuP(base_width=32, base_heads=None)
WIDE: dict[str, Any] = {"d_model": 32 * M, "d_ff": 96 * M, "bias": True, "init_std": 0.02, "max_seq_len": 16}
ALL = combinations_of_all()
WITHOUT_WINDOW = [choice for choice in ALL if not choice.window]


@cache
def optimizer_of(*overrides: str) -> DictConfig:
    """A configuration with the optimizer given by the overrides."""
    return tinyllm.compose(*overrides)


def groups_of(model: Any, *overrides: str) -> dict[str, dict[str, Any]]:
    """The optimizer's group of each parameter."""
    optimizer, _ = build_optimizer(optimizer_of(*overrides), model, allow=frozenset())
    return {name: group for group in optimizer.param_groups for name in group["names"]}


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_at_the_base_width_it_equals_standard_bit_for_bit(optimizer: str) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    weights = []
    for own in ({}, {"parametrization": MUP}):
        model = small("attn=mla", "moe=aux_free", tie_embeddings=False, **own)
        trained, _ = build_optimizer(optimizer_of(f"optimizer={optimizer}"), model, allow=frozenset())
        objective = NextToken(model)
        for _ in range(3):
            loss = objective(Batch(inputs=ids(4, 12), targets=ids(4, 12)))
            loss.share_of_step(weight=48, fraction=1.0).backward()
            trained.step()
            trained.zero_grad()
        weights.append([*(group["names"] for group in trained.param_groups), dict(model.state_dict())])
    (*names, standard), (*others, mup) = weights
    assert names == others
    assert all(torch.equal(standard[name], mup[name]) for name in standard)


@pytest.mark.parametrize("choice", params(WITHOUT_WINDOW, sorted(everyday(ALL) & set(WITHOUT_WINDOW))[::6]))
def test_every_composition_at_the_base_width(choice: Choice) -> None:
    standard, mup = built(choice).eval(), built(choice, parametrization=MUP).eval()
    with torch.no_grad():
        assert torch.equal(standard(ids(2, CONTEXT)), mup(ids(2, CONTEXT)))
    assert mup.matrix_scalings == {}


HIDDEN, OUTPUT_LIKE, INPUT_LIKE, HEAD = (M**-0.5, 1 / M), (1 / M, 1 / M), (1.0, 1.0), (1.0, 1.0)
"""Factors on the initial standard deviation and on the learning rate of Adam (Yang et al. 2022, table 3; the head as in
table 8)."""
MATRICES = {
    "attn.q.weight": HIDDEN,
    "attn.kv_down.weight": HIDDEN,
    "attn.kv_up.weight": HIDDEN,
    "attn.out.weight": HIDDEN,
    "attn.qkv.weight": HIDDEN,
    "ffn.up.weight": HIDDEN,
    "ffn.down.weight": HIDDEN,
    "ffn.router.weight": OUTPUT_LIKE,
    "ffn.experts.gate_up.weight": HIDDEN,
    "ffn.experts.down.weight": HIDDEN,
    "ffn.shared.gate_up.weight": HIDDEN,
    "ffn.shared.down.weight": HIDDEN,
}
FIXED_LATENT = (
    "attn=mla",
    "model.block.attn.kv_latent_dim=24",
    "model.block.attn.q_latent_dim=16",
    "model.block.attn.rope_head_dim=0",
    "pos=learned",
)
LATENT = {
    "attn.q_down.weight": OUTPUT_LIKE,
    "attn.q_up.weight": INPUT_LIKE,
    "attn.kv_down.weight": OUTPUT_LIKE,
    "attn.kv_up.weight": INPUT_LIKE,
}
FIXED_HIDDEN = {"ffn.up.weight": OUTPUT_LIKE, "ffn.down.weight": INPUT_LIKE}
EXPERTS = ("attn=mla", "moe=aux_free", "ffn=swiglu", "model.block.moe.n_active=2", "model.block.moe.n_experts=4")
COMPOSITIONS = [
    pytest.param(EXPERTS, {}, id="mla experts"),
    pytest.param(("attn=gqa", "pos=learned", "norm=layernorm"), {}, id="gqa mlp learned"),
    pytest.param(FIXED_LATENT, LATENT, id="latents of fixed size"),
    pytest.param(("attn=mqa", "model.block.ffn.d_ff=48"), FIXED_HIDDEN, id="d_ff of fixed size"),
]


def expected(name: str, own: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Factors of a parameter; embeddings, gains and biases have none."""
    short = name.split(".", 2)[-1] if name.startswith("blocks.") else name
    return (MATRICES | own).get(short, HEAD)


@pytest.mark.parametrize(("overrides", "own"), COMPOSITIONS)
def test_initial_weights(overrides: tuple[str, ...], own: dict[str, tuple[float, float]]) -> None:
    model = small(*overrides, parametrization=MUP, tie_embeddings=False, **WIDE)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("bias"):
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name)))
            continue
        into_stream = 1 / math.sqrt(2 * 2) if name.endswith((".out.weight", ".down.weight")) else 1.0
        std = 0.02 * into_stream * expected(name, own)[0]
        error = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
        assert parameter.std().item() == pytest.approx(std, rel=error), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "lion"])
@pytest.mark.parametrize(("overrides", "own"), COMPOSITIONS)
def test_learning_rates_of_entrywise_optimizers(
    optimizer: str, overrides: tuple[str, ...], own: dict[str, tuple[float, float]]
) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    model = small(*overrides, parametrization=MUP, tie_embeddings=False, **WIDE)
    kinds = model.parameter_kinds()
    for name, group in groups_of(model, f"optimizer={optimizer}", "optimizer.weight_decay=0.1").items():
        scale = group.get("lr_scale", 1.0)
        assert scale == pytest.approx(expected(name, own)[1]), name
        decay = 0.1 if kinds[name] in ("matrix", "head") else 0.0
        assert group["weight_decay"] * scale == pytest.approx(decay), "a step decays as much at every width"


@pytest.mark.parametrize("orthogonal", ["true", "false"])
@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize(("overrides", "own"), COMPOSITIONS)
def test_learning_rates_of_muon(orthogonal: str, scale: str, overrides: tuple[str, ...], own: dict[str, Any]) -> None:
    """The spectral norm of a step is ∝ √(rows/columns), times M for the head, whose logits are scaled by 1/M."""
    mup = small(*overrides, parametrization=MUP, tie_embeddings=False, **WIDE)
    base_shape = small(*overrides, tie_embeddings=False, **WIDE | {"d_model": 32, "d_ff": 96})
    shapes = {name: p.shape[-2:] for name, p in base_shape.named_parameters()}

    def size(rows: int, columns: int) -> float:
        """Spectral norm of a step at learning rate 1, as ``Muon`` documents it."""
        return 0.2 * math.sqrt(max(rows, columns)) if scale == "rms" else math.sqrt(max(1, rows / columns))

    chosen = ("optimizer=muon", f"optimizer.scale={scale}", "optimizer.lr=3e-3", "optimizer.adamw_lr=6e-4",
              f"optimizer.orthogonal_head={orthogonal}", "model.tie_embeddings=false")  # fmt: skip
    groups, kinds = groups_of(mup, *chosen), mup.parameter_kinds()
    for name, parameter in mup.named_parameters():
        factor = groups[name].get("lr_scale", 1.0)
        if kinds[name] not in (("matrix", "head") if orthogonal == "true" else ("matrix",)):
            assert factor == pytest.approx(0.2), name  # adamw_lr / lr, for the head as well: see HEAD
            continue
        wanted = [math.sqrt(rows / columns) for rows, columns in (parameter.shape[-2:], shapes[name])]
        steps = [factor * size(*parameter.shape[-2:]), size(*shapes[name])]
        grown = wanted[0] / wanted[1] * (M if name == "head.weight" else 1)
        assert steps[0] / steps[1] == pytest.approx(grown), name


@pytest.mark.parametrize("attn", options("attn"))
def test_attention_scale(attn: str) -> None:
    """∝ 1/head_dim if the heads grow, 1/√head_dim at the base; unchanged if their number grows."""
    model = small(f"attn={attn}", parametrization=MUP, **WIDE)
    layer = model.layers()[0].attn
    d = layer.nope_dim + layer.rope_dim if attn.startswith("mla") else layer.head_dim
    assert layer.scale == pytest.approx(math.sqrt(d / M) / d)
    more = small(f"attn={attn}", parametrization=MuP(base_width=32, base_heads=4), **WIDE | {"n_heads": 16})
    assert more.layers()[0].attn.scale == small(f"attn={attn}", **WIDE | {"n_heads": 16}).layers()[0].attn.scale


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_scaled_everywhere(tied: bool) -> None:
    """In the loss, in the logits and in generation; the same weights give nothing else that differs."""
    model = small(parametrization=MUP, tie_embeddings=tied, **WIDE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        found = model.logits(model(ids(2, 9)))
        loss = NextToken(model)(Batch(inputs=ids(2, 9), targets=ids(2, 9))).total
        decoder = Decoder(model, ids(2, 9).tolist(), n_samples=1, max_new_tokens=1, kv_cache=True)
        following = decoder.logits()
        assert model.output_multiplier == 1 / M
        model.output_multiplier = 1.0
        whole = model.logits(model(ids(2, 9)))
    torch.testing.assert_close(found, whole / M)
    torch.testing.assert_close(following, found[:, -1])
    expected = torch.nn.functional.cross_entropy(found.flatten(0, 1), ids(2, 9).flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_key_value_heads_of_the_base_model() -> None:
    """The ratio of the model, or the nearest one that divides."""
    mup = MuP(base_width=64, base_heads=4)
    for heads, key_values, there in ((8, 8, 4), (8, 4, 2), (8, 1, 1), (12, 4, 1), (12, 6, 2)):
        shape = mup.base_shape(d_model=256, n_heads=heads, n_kv_heads=key_values, d_ff=1024)
        assert shape == {"d_model": 64, "n_heads": 4, "n_kv_heads": there, "d_ff": 256}


def test_mixed_layers_are_compared_with_their_own_base_shapes() -> None:
    kinds = 'model.layers.kinds={a:"attn=mla",b:"moe=aux_loss"}'
    model = small("layers=pattern", "model.layers.pattern=[a,b]", kinds, parametrization=MUP, **WIDE)
    assert model.matrix_scalings["blocks.0.attn.kv_up.weight"].base_shape == (4 * (8 + 8), 32)
    assert model.matrix_scalings["blocks.1.ffn.router.weight"].base_shape[1] == 32


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="base_width=0"):
        MuP(base_width=0, base_heads=None)
    with pytest.raises(ValueError, match="base_heads=0"):
        MuP(base_width=32, base_heads=0)
    twelve = ("parametrization=mup", "model.parametrization.base_width=32")
    with pytest.raises(UserError, match=r"base_width=32.*d_model=32 is not divisible by n_heads=12.*base_heads"):
        small(*twelve, **WIDE | {"d_model": 192, "n_heads": 12, "n_kv_heads": 6})


def test_attention_without_a_scale_is_refused() -> None:
    def build(**shape: int) -> Any:
        model = small(**WIDE | shape)
        for block in model.layers():
            del block.attn.scale
        return model

    shape = {"d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_ff": 384}
    with pytest.raises(ValueError, match=r"base_width=32: MHA has no scale"):
        MUP.apply(build(**shape), build, shape=shape)


def test_a_growing_matrix_outside_linear_layers_is_refused() -> None:
    """Its initialization would not be scaled."""

    class Gate(torch.nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.gate = torch.nn.Parameter(torch.empty(2, dim))

    with pytest.raises(ValueError, match=r"base_width=32: gate"):
        MUP.apply(
            Gate(64),
            lambda d_model, **_: Gate(d_model),
            shape={"d_model": 64, "n_heads": 1, "n_kv_heads": 1, "d_ff": 64},
        )
