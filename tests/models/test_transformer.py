"""Sizes, initial weights, tying, parallel blocks, and invalid arguments."""

import math
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.options import node, small
from tinyllm.config.build import build
from tinyllm.errors import UserError
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_model


def on_meta(*overrides: str, vocab_size: int) -> Transformer:
    with torch.device("meta"):
        model = build(node(overrides), path="model", vocab_size=vocab_size)
    assert isinstance(model, Transformer)
    return model


@pytest.mark.parametrize(
    ("size", "vocab_size", "total"),
    [
        # d_model·(vocab + 2·n_layers + 1) + n_layers·(4·d_model² + 2·d_model·d_ff), by hand from the option table
        ("nano", 65, 128 * (65 + 9) + 4 * (4 * 128**2 + 2 * 128 * 512)),
        ("baby", 65, 384 * (65 + 13) + 6 * (4 * 384**2 + 2 * 384 * 1536)),
        ("tiny", 32000, 256 * (32000 + 9) + 4 * (4 * 256**2 + 2 * 256 * 1024)),
        ("medium", 32000, 768 * (32000 + 25) + 12 * (4 * 768**2 + 2 * 768 * 3072)),
        ("gpt2", 50257, 768 * (50257 + 25) + 12 * (4 * 768**2 + 2 * 768 * 3072)),
        ("large", 32000, 1600 * (32000 + 65) + 32 * (4 * 1600**2 + 2 * 1600 * 6400)),
        ("xlarge", 32000, 2048 * (32000 + 81) + 40 * (4 * 2048**2 + 2 * 2048 * 8192)),
        # untied, SwiGLU with a hidden size of 11008
        ("7b", 32000, 4096 * (2 * 32000 + 65) + 32 * (4 * 4096**2 + 3 * 4096 * 11008)),
    ],
)
def test_sizes(size: str, vocab_size: int, total: int) -> None:
    counts = on_meta(f"model={size}", vocab_size=vocab_size).parameter_counts()
    assert counts.total == counts.active == total
    assert counts.embedding == vocab_size * {
        "nano": 128,
        "baby": 384,
        "tiny": 256,
        "large": 1600,
        "xlarge": 2048,
        "7b": 4096,
    }.get(size, 768)


def test_sizes_match_the_documents() -> None:
    millions = {"tiny": 11.3, "medium": 110, "large": 1030, "xlarge": 2080, "7b": 6740}
    for size, expected in millions.items():
        assert on_meta(f"model={size}", vocab_size=32000).parameter_counts().total / 1e6 == pytest.approx(
            expected, rel=0.01
        )


def test_swiglu_has_as_many_parameters_as_the_mlp() -> None:
    gelu, swiglu = (
        on_meta("model=medium", f"ffn={f}", vocab_size=32000).parameter_counts().total for f in ("gelu", "swiglu")
    )
    assert abs(swiglu / gelu - 1) < 0.002


def test_initial_weights() -> None:
    settings: dict[str, Any] = {"d_model": 256, "d_ff": 512, "n_layers": 3, "init_std": 0.05, "bias": True}
    model = small(**settings, tie_embeddings=False)
    plain = small(**settings, scaled_init=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(
                parameter, torch.ones_like(parameter) if "norm" in name and "weight" in name else parameter * 0
            )
            continue
        residual = name.endswith(("out.weight", "down.weight"))
        expected = 0.05 / math.sqrt(6) if residual else 0.05
        assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
        assert abs(parameter.mean().item()) < 5 * expected / parameter.numel() ** 0.5
    assert plain.layers()[0].attn.out.weight.std().item() == pytest.approx(0.05, rel=0.03)


def test_tying() -> None:
    tied, untied = small(), small(tie_embeddings=False)
    assert tied.head_weight is tied.embedding.weight
    assert untied.head_weight is not untied.embedding.weight
    assert untied.parameter_counts().total - tied.parameter_counts().total == 31 * 32
    assert [k for k in tied.state_dict() if "head" in k] == []
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(untied.logits(hidden), hidden @ untied.head_weight.t())


def test_parameter_kinds() -> None:
    kinds = small("pos=learned", "norm=layernorm", bias=True, tie_embeddings=False).parameter_kinds()
    assert {name for name, kind in kinds.items() if kind == "embedding"} == {"embedding.weight", "pos.table.weight"}
    assert kinds["head.weight"] == "head" and kinds["blocks.0.attn.qkv.weight"] == "matrix"
    assert {kinds[name] for name in kinds if name.endswith("bias") or "norm" in name} == {"vector"}


@pytest.mark.parametrize("parallel", [False, True])
def test_sequential_and_parallel_blocks_equal_the_formula(parallel: bool) -> None:
    block = small(parallel_block=parallel).layers()[0]
    x = torch.randn(2, 5, 32)
    if parallel:
        expected = x + block.attn(block.norm1(x)) + block.ffn(block.norm2(x))[0]
    else:
        middle = x + block.attn(block.norm1(x))
        expected = middle + block.ffn(block.norm2(middle))[0]
    torch.testing.assert_close(block(x)[0], expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"d_model": 33}, "model.d_model=33"),
        ({"n_layers": 0}, "model.n_layers=0"),
        ({"max_seq_len": 0}, "model.max_seq_len=0"),
        ({"d_ff": -1}, "model.d_ff=-1"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"attn_dropout": -0.1}, "model.attn_dropout=-0.1"),
        ({"init_std": 0.0}, "model.init_std=0.0"),
        ({"d_model": 20}, "head_dim=5|model.d_model=20"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((UserError, ValueError), match=sentence):
        small(**changes)


def test_gqa_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises((UserError, ValueError), match="n_kv_heads=3"):
        small("attn=gqa", n_kv_heads=3)


def test_flops_equal_the_formula() -> None:
    """GPT-2 small: 2 FLOPs per matrix weight, and 4·d_model per layer and key."""
    model = on_meta("model=gpt2", vocab_size=50257)
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072) + 50257 * 768
    assert model.flops_per_token(1024) == 2 * weights + 12 * 4 * 768 * 1024


def test_the_cache_has_the_dtype_of_attention() -> None:
    model = small()
    assert model.make_cache(1, 4).layers[0].buffers[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model.make_cache(1, 4).layers[0].buffers[0].dtype == torch.bfloat16
    assert model.to(torch.bfloat16).make_cache(1, 4).layers[0].buffers[0].dtype == torch.bfloat16


def test_a_model_is_materialized_outside_of_meta() -> None:
    """Tables that a strategy fills, such as those of rotary positions, must not land on meta."""
    places: list[str] = []

    def place(model: Any) -> Any:
        places.append(torch.empty(0).device.type)
        return model

    cfg = tinyllm.compose("model=pico")
    model = build_model(cfg, vocab_size=11, seed=0, device=torch.device("cpu"), allow=frozenset(), place=place)
    assert places == ["cpu"] and all(parameter.is_meta for parameter in model.parameters())
