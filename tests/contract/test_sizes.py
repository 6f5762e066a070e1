"""Every size with every part, on the meta device; pairs that do not go together; options that a user adds."""

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
    """Builds on the meta device, and the accounting is defined."""
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
    """All layers of a model are alike, so two stand for them; the whole once."""
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
    """What the command line names beside a size is what composes, and nothing else of the size changes."""
    for name in options(group):
        chosen = node((f"model={size}", f"{group}={name}"))
        assert chosen == assembled(node((f"model={size}",)), **{group: name})
        assert at(chosen, PLACES[group]) == at(node((f"{group}={name}",)), PLACES[group])


def test_the_heads_of_large() -> None:
    """25 heads have 5 heads of keys and values under gqa."""
    large = node(("model=large",))
    attn = check(assembled(large, attn="gqa")).layers()[0].attn
    assert (attn.n_heads, attn.n_kv_heads, attn.qkv.weight.shape) == (25, 5, (35 * 64, 1600))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("attn=mla", "pos=none", "model.block.attn.rope_head_dim=8"), "rope_head_dim=8 needs rotary positions"),
        (("attn=mla", "pos=learned", "model.block.attn.rope_head_dim=8"), "rope_head_dim=8 needs rotary positions"),
        (("attn=mla", "model.block.attn.rope_head_dim=3"), "rope_head_dim=3 is odd, and rotary positions turn pairs"),
        (("attn=mla", "+model.block.attn.qk_norm=true"), "unknown key (model.block.attn.qk_norm=true)"),
        (("attn=mla", "model.n_kv_heads=2"), "n_kv_heads=2): none of MLA"),
        (("attn=gqa", "model.n_kv_heads=3"), "n_kv_heads=3 does not divide n_heads=4"),
        (("attn=mqa", "model.n_kv_heads=2"), "n_kv_heads=2): none of MQA"),
        (("attn=mha", "model.n_heads=3"), "d_model=128 is not divisible by n_heads=3"),
        (("model.d_model=36",), "head_dim=9 is odd: rotary positions turn pairs"),
        (("attn=mqa", "model.block.attn.sinks=2"), "model.block.attn.window=0 turns it off"),
        (("model.block.attn.window=-1",), "window=-1 must be at least 0"),
        (("moe=aux_loss", "model.block.moe.n_active=9"), "n_experts=8 must be at least n_active=9"),
        (("moe=aux_free", "model.block.moe.n_shared=3"), "n_active=3 must be more than n_shared=3"),
    ],
)
def test_what_does_not_go_together_says_why(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        cfg = tinyllm.compose(*overrides)
        build_model(cfg, vocab_size=20, seed=0, device=torch.device("meta"), allow=frozenset())
    assert sentence in str(refused.value)


@pytest.mark.parametrize("pos", [pos for pos in distinct("pos") if not pos.startswith("rope")])
def test_odd_heads_are_for_other_positions(pos: str) -> None:
    assert check(assembled(node(()), pos=pos) | {"d_model": 36}).layers()[0].attn.head_dim == 9


CLASS = """
from tinyllm.nn.attention.mha import GQA


class Slow(GQA):
    pass
"""


def test_new_files_are_found_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One yaml and one class in a directory of the user's become an option that these tests can build."""
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


def test_the_groups_are_those_of_the_option_table() -> None:
    assert {"mha", "mqa", "gqa", "mla"} <= set(options("attn"))
    assert {"mlp", "glu", "gelu", "swiglu"} <= set(options("ffn"))
    assert {"none", "aux_loss", "aux_free"} <= set(options("moe"))
    assert {"uniform", "pattern", "jsonl"} <= set(options("layers"))
    assert set(options("pos")) >= {"learned", "sinusoidal", "rope", "none"}
    assert set(options("norm")) >= {"layernorm", "rmsnorm"}
    assert set(options("model")) >= {"nano", "baby", "tiny", "medium", "gpt2", "large", "xlarge", "7b"}
    assert len(distinct("ffn")) == len(options("ffn")) - 2  # gelu is mlp, swiglu is glu
