"""Every size with every option on the meta device, invalid combinations, and options that a user adds."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.options import PARTS, PLACES, assembled, at, distinct, node, options, small
from tinyllm.config.build import build
from tinyllm.errors import UserError
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_model

SIZES = options("model")


def check(content: dict[str, Any]) -> Transformer:
    """Build the model on the meta device and check its accounting."""
    with torch.device("meta"):
        model = build(content | {"vocab_size": 32000}, path="model")
    assert isinstance(model, Transformer)
    counts = model.parameter_counts()
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert 0 < counts.embedding < counts.total
    assert model.flops_per_token(1) > 2 * (counts.active - counts.embedding) * 0.99
    assert model.decode_flops_per_token(model.max_seq_len) >= model.flops_per_token(1)
    assert model.cache_bytes_per_token(torch.bfloat16) * model.max_seq_len == model.cache_bytes(
        model.max_seq_len, torch.bfloat16
    )
    return model


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_with_every_option(size: str) -> None:
    """The full depth once, then two layers, since all layers are alike."""
    of_size = node((f"model={size}",))
    check(of_size)
    two = of_size | {"n_layers": 2}
    for attn, pos in product(distinct("attn"), distinct("pos")):
        check(assembled(two, attn=attn, pos=pos))
    for ffn, moe in product(distinct("ffn"), distinct("moe")):
        dense, mixed = check(assembled(two, ffn=ffn, moe="none")), check(assembled(two, ffn=ffn, moe=moe))
        routers = sum(p.numel() for name, p in mixed.named_parameters() if "router" in name)
        active = mixed.parameter_counts().active - routers
        if mixed.d_model >= 256:  # below, the multiple of 8 is coarse
            assert active == pytest.approx(dense.parameter_counts().active, rel=0.02)
    for norm in distinct("norm"):
        check(assembled(two, norm=norm))


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [pytest.param(one, marks=[pytest.mark.exhaustive] * (place % 3 != 0)) for place, one in enumerate(SIZES)]
)
def test_every_size_builds_with_every_combination(size: str) -> None:
    two = node((f"model={size}",)) | {"n_layers": 2}
    for names in product(*(distinct(group) for group in PARTS)):
        check(assembled(two, **dict(zip(PARTS, names, strict=True))))


@pytest.mark.parametrize("group", PARTS)
@pytest.mark.parametrize("size", [pytest.param(one, marks=[pytest.mark.slow] * (one != "7b")) for one in SIZES])
def test_a_size_takes_every_option(size: str, group: str) -> None:
    """An option next to a size replaces its own node and nothing else."""
    for name in options(group):
        chosen = node((f"model={size}", f"{group}={name}"))
        assert chosen == assembled(node((f"model={size}",)), **{group: name})
        assert at(chosen, PLACES[group]) == at(node((f"{group}={name}",)), PLACES[group])


def test_gqa_heads_of_large() -> None:
    """With gqa, 25 query heads share 5 key-value heads."""
    large = node(("model=large",))
    attn = check(assembled(large, attn="gqa")).layers()[0].attn
    assert (attn.n_heads, attn.n_kv_heads, attn.qkv.weight.shape) == (25, 5, (35 * 64, 1600))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("attn=mla", "pos=none", "model.block.attn.rope_head_dim=8"), "rope_head_dim=8 needs rotary positions"),
        (("attn=mla", "pos=learned", "model.block.attn.rope_head_dim=8"), "rope_head_dim=8 needs rotary positions"),
        (("attn=mla", "model.block.attn.rope_head_dim=3"), "rope_head_dim=3 is odd, and rotary positions rotate pairs"),
        (("attn=mla", "+model.block.attn.qk_norm=true"), "unknown key (model.block.attn.qk_norm=true)"),
        (("attn=mla", "model.n_kv_heads=2"), "n_kv_heads=2): not used by MLA"),
        (("attn=gqa", "model.n_kv_heads=3"), "n_kv_heads=3 does not divide n_heads=4"),
        (("attn=mqa", "model.n_kv_heads=2"), "n_kv_heads=2): not used by MQA"),
        (("attn=mha", "model.n_heads=3"), "d_model=128 is not divisible by n_heads=3"),
        (("model.d_model=36",), "head_dim=9 is odd: rotary positions rotate pairs"),
        (("attn=mqa", "model.block.attn.sinks=2"), "model.block.attn.window=0 turns it off"),
        (("model.block.attn.window=-1",), "window=-1 must be at least 0"),
        (("moe=aux_loss", "model.block.moe.n_active=9"), "n_experts=8 must be at least n_active=9"),
        (("moe=aux_free", "model.block.moe.n_shared=3"), "n_active=3 must be more than n_shared=3"),
    ],
)
def test_invalid_combinations_say_why(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        cfg = tinyllm.compose(*overrides)
        build_model(cfg, vocab_size=20, seed=0, device=torch.device("meta"), allow=frozenset())
    assert sentence in str(refused.value)


@pytest.mark.parametrize("pos", [pos for pos in distinct("pos") if not pos.startswith("rope")])
def test_odd_head_sizes_work_without_rope(pos: str) -> None:
    assert check(assembled(node(()), pos=pos) | {"d_model": 36}).layers()[0].attn.head_dim == 9


CLASS = """
from tinyllm.nn.attention.mha import GQA


class Slow(GQA):
    pass
"""


def test_new_option_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A yaml file and a class in a user's directory become an option that builds."""
    shipped = options("attn")
    (tmp_path / "attn").mkdir()
    text = "# @package model.block.attn\n# GQA under another name.\ndefaults: [gqa, _self_]\n"
    (tmp_path / "attn" / "slow.yaml").write_text(text + "_target_: slow_attention_of_a_user.Slow\nqk_norm: true\n")
    (tmp_path / "slow_attention_of_a_user.py").write_text(CLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert options("attn", directory=tmp_path) == ["slow"]
    model = small("attn=slow", config_dir=tmp_path)
    assert type(model.layers()[0].attn).__name__ == "Slow"
    assert options("attn") == shipped


def test_documented_options_exist() -> None:
    assert {"mha", "mqa", "gqa", "mla"} <= set(options("attn"))
    assert {"mlp", "glu", "gelu", "swiglu"} <= set(options("ffn"))
    assert {"none", "aux_loss", "aux_free"} <= set(options("moe"))
    assert {"uniform", "pattern", "jsonl"} <= set(options("layers"))
    assert set(options("pos")) >= {"learned", "sinusoidal", "rope", "none"}
    assert set(options("norm")) >= {"layernorm", "rmsnorm"}
    assert set(options("model")) >= {"nano", "baby", "tiny", "medium", "gpt2", "large", "xlarge", "7b"}
    assert len(distinct("ffn")) == len(options("ffn")) - 2  # gelu is mlp, swiglu is glu
