"""Layers that differ: what kinds and written-out layers compose to, and which are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import tinyllm
from tinyllm.config.compose import Composition
from tinyllm.config.grammar import words
from tinyllm.config.layers_jsonl import read_layers
from tinyllm.errors import UserError
from tinyllm.models.block import Block
from tinyllm.models.layers import pattern
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_model

LINE = {"attn": "mha", "n_head": 4, "moe": False, "up_dim": 64, "non_linearity": "relu"}
TWO = ("layers=jsonl", "model.n_layers=2")
A_B = ("layers=pattern", "model.layers.pattern=[a,b]")


def kinds(**texts: str) -> str:
    return "model.layers.kinds={" + ",".join(f'{name}:"{text}"' for name, text in texts.items()) + "}"


def line(**changes: Any) -> str:
    """A line with some values changed; ``...`` omits the key."""
    return json.dumps({key: value for key, value in (LINE | changes).items() if value is not ...})


def sketch(*overrides: str, **more: Any) -> Transformer:
    cfg = tinyllm.compose(*overrides, **more)
    model = build_model(cfg, vocab_size=20, seed=0, device=torch.device("meta"), allow=frozenset())
    assert isinstance(model, Transformer)
    return model


def parts(model: Transformer) -> list[str]:
    return [f"{type(block.attn).__name__}+{type(block.ffn).__name__}" for block in model.layers()]


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def test_a_kind_equals_the_block_of_a_uniform_model_with_its_overrides() -> None:
    """Compares node by node."""
    changes = ("attn=gqa", "ffn=swiglu", "moe=aux_free", "model.block.attn.window=8", "model.block.moe.n_experts=4")
    cfg = tinyllm.compose(*A_B, kinds(a="", b=" ".join(changes)))
    assert plain(cfg.model.layers.kinds.a) == plain(tinyllm.compose().model.block)
    assert plain(cfg.model.layers.kinds.b) == plain(tinyllm.compose(*changes).model.block)


def test_a_kind_may_have_its_own_heads_and_sizes() -> None:
    text = "attn=gqa model.n_heads=8 model.n_kv_heads=1 model.d_ff=96 model.parallel_block=true model.attn_dropout=0.5"
    model = sketch(*A_B, kinds(a="", b=text))
    first, second, third, _ = model.layers()
    assert (first.attn.n_heads, second.attn.n_heads, second.attn.n_kv_heads) == (4, 8, 1)
    assert (first.ffn.d_ff, second.ffn.d_ff, third.ffn.d_ff) == (512, 96, 512)
    assert (first.parallel_block, second.parallel_block) == (False, True)
    assert (first.attn.attn_dropout, second.attn.attn_dropout) == (0.0, 0.5)
    assert model.pos.by_dim.keys() == {"32", "16"}


def test_the_pattern_is_repeated() -> None:
    five = (kinds(far="", near="attn=mqa"), "layers=pattern", "model.layers.pattern=[near,near,far]")
    assert parts(sketch(*five, "model.n_layers=6")) == ["MQA+MLP", "MQA+MLP", "MHA+MLP"] * 2
    cut = sketch(*five, "model.n_layers=5", "model.layers.truncate=true")
    assert parts(cut) == ["MQA+MLP", "MQA+MLP", "MHA+MLP", "MQA+MLP", "MQA+MLP"]
    assert cut.first_of_kind == [0, 0, 2, 0, 0]


def test_a_kind_is_composed_on_top_of_the_runs_settings() -> None:
    """A setting of the run is kept if the kind's option has the key, and dropped otherwise."""
    base = ("attn=mla", "model.block.attn.kv_latent_dim=24", "model.block.attn.window=8", "ffn=swiglu")
    cfg = tinyllm.compose(*A_B, *base, kinds(a="", b="attn=mqa"))
    a, b = cfg.model.layers.kinds.a, cfg.model.layers.kinds.b
    assert (a.attn.kv_latent_dim, a.attn.window, b.attn.window) == (24, 8, 8)
    assert "kv_latent_dim" not in b.attn and b.ffn.gate == "silu"


def test_written_out_layers_compose_to_their_values() -> None:
    lines = [
        line(),
        line(attn="gqa", n_head=2, n_kv_heads=1, non_linearity="geglu", up_dim=40),
        line(attn="mla", q_latent_dim=None, kv_latent_dim=16, rope_head_dim=8, non_linearity="silu"),
        line(attn="mla", q_latent_dim=24, kv_latent_dim=16, rope_head_dim=8),
        line(moe=True, aux_free=True, n_exp=6, n_shared=2, n_act=3, alpha=1e-5, gamma=0.01, non_linearity="swiglu"),
        line(moe=True, aux_free=False, n_exp=4, n_shared=0, n_act=1, coeff=0.5),
    ]
    cfg = tinyllm.compose("layers=jsonl", "model.n_layers=6", "model.layers.json=" + "\n".join(lines))
    model = build_model(cfg, vocab_size=20, seed=0, device=torch.device("meta"), allow=frozenset())
    found = ["MHA+MLP", "GQA+GLU", "MLA+MLP", "MLA+MLP", "MHA+AuxFree", "MHA+AuxLoss"]
    assert parts(model) == found
    assert [block.ffn.d_ff for block in model.layers()] == [64, 40, 64, 64, 64, 64]
    blocks = [cfg.model.layers.kinds[name] for name in cfg.model.layers.pattern]
    assert (blocks[1].n_heads, blocks[1].n_kv_heads, blocks[1].ffn.gate) == (2, 1, "gelu")
    assert [blocks[i].attn.q_latent_dim for i in (2, 3)] == [None, 24]
    assert (blocks[3].attn.kv_latent_dim, blocks[3].attn.rope_head_dim) == (16, 8)
    assert [blocks[0].ffn.activation, blocks[2].ffn.activation, blocks[4].ffn.gate] == ["relu", "silu", "silu"]
    mixture = {"n_experts": 6, "n_shared": 2, "n_active": 3, "alpha": 1e-5, "gamma": 0.01, "expert_d_ff": 64}
    assert plain(blocks[4].moe).items() >= mixture.items()
    assert (blocks[5].moe.coeff, blocks[5].moe.n_active) == (0.5, 1)


def test_a_file_a_text_and_an_array_give_the_same_layers(tmp_path: Path) -> None:
    lines = [line(), line(attn="mqa"), line()]
    file = tmp_path / "layers.jsonl"
    file.write_text("\n" + "\n\n".join(lines) + "\n")
    texts = ["\n".join(lines), f"[{', '.join(lines)}]", "[\n" + ",\n".join(lines) + "]"]
    found = [read_layers(text, source="x", parameters=lambda attn: set()) for text in [file.read_text(), *texts]]
    assert len({tuple(one.overrides for one in layers) for layers in found}) == 1
    model = sketch("layers=jsonl", "model.n_layers=3", f"model.layers.path={file}")
    assert parts(model) == ["MHA+MLP", "MQA+MLP", "MHA+MLP"]
    assert model.first_of_kind == [0, 1, 0]


def test_equal_lines_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = Composition.with_overrides

    def counting(self: Composition, more: Any, /, **keywords: Any) -> Any:
        calls.append(list(more))
        return whole(self, more, **keywords)

    monkeypatch.setattr(Composition, "with_overrides", counting)
    tinyllm.compose("layers=jsonl", "model.n_layers=8", "model.layers.json=" + "\n".join([line()] * 8))
    assert len(calls) == 2  # once for the parameters of the attention, once for the line


def test_settings_that_no_line_replaces_apply_to_all_layers() -> None:
    cfg = tinyllm.compose(*TWO, f"model.layers.json={line()}\n{line(attn='mqa')}", "model.block.attn.window=5")
    assert [kind.attn.window for kind in cfg.model.layers.kinds.values()] == [5, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((kinds(a="", b="attn=gqx"),), "no such option (model.layers.kinds.b=attn=gqx): attn=gqx: "),
        ((kinds(a="", b="model.d_model=8"),), "layers (model.layers.kinds.b=model.d_model=8): model.d_model=8: "),
        ((kinds(a="", b="optimizer.lr=1"),), "layers (model.layers.kinds.b=optimizer.lr=1)"),
        ((kinds(a="", b="norm=layernorm"),), "layers (model.layers.kinds.b=norm=layernorm)"),
        ((kinds(a="", b="model.block.attn.windo=1"),), "unknown key (model.layers.kinds.b=model.block.attn.windo=1)"),
        ((kinds(a="", b="+model.block.x=1"),), "unknown key (model.layers.kinds.b=+model.block.x=1): model.block.x=1"),
        ((kinds(a="", b="model.n_kv_heads=2"),), "no effect here (model.layers.kinds.b=model.n_kv_heads=2)"),
        ((kinds(a="", b="model.n_heads=1,2"),), "more than one value (model.layers.kinds.b=model.n_heads=1,2)"),
        ((kinds(a="", b="model.n_heads=two"),), "wrong type (model.layers.kinds.b=model.n_heads=two)"),
        ((kinds(a="", b="~attn"),), "cannot be removed (model.layers.kinds.b=~attn)"),
        ((kinds(a="", b="attn='mha"),), "not understood (model.layers.kinds.b=attn='mha)"),
        ((kinds(a="", b="model.n_heads=0"),), "(model.layers.kinds.b.n_heads=0): n_heads=0 must be at least 1"),
        ((kinds(a="", b="model.attn_dropout=2"),), "(model.layers.kinds.b.attn_dropout=2)"),
        ((kinds(a="", b="model.n_heads=3"),), "(model.layers.kinds.b.n_heads=3): d_model=128 is not divisible"),
        (("model.layers.kinds={a:1,b:2}",), "wrong type (model.layers.kinds={'a': 1, 'b': 2}): a mapping of"),
        (("model.layers.kinds=a",), "wrong type (model.layers.kinds=a): a mapping of names"),
        (('model.layers.kinds={a.b:""}',), "invalid name for a kind of layer (model.layers.kinds=a.b)"),
        ((), "value missing (model.layers.kinds=???)"),
        ((kinds(a="", b=""), "model.n_layers=3"), "does not divide n_layers=3; model.layers.truncate=true"),
        ((kinds(a="attn=mha", b="attn=mqa"), "attn=gqa"), "no effect here (attn): every layer sets its own"),
        ((kinds(a="attn=mha", b="attn=mqa"), "model.n_kv_heads=1"), "no effect here (model.n_kv_heads=1)"),
        (
            (kinds(a="attn=mqa", b="attn=gqa"), "attn=mla", "model.block.attn.kv_latent_dim=8"),
            "no effect here (attn): every layer",
        ),
        (
            (kinds(a="model.block.attn.window=2", b="model.block.attn.window=4"), "model.block.attn.window=8"),
            "no effect here (model.block.attn.window=8): every layer",
        ),
    ],
)  # fmt: skip
def test_a_wrong_kind_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        sketch(*A_B, *overrides)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("names", "n_layers", "sentence"),
    [
        ([], 4, "pattern=[] is empty"),
        (["a", "c"], 4, "pattern=[a,c] names c, which is not among the kinds a, b"),
        (["a"], 4, "pattern=[a] uses no kind b in 4 layers"),
        (["a", "a", "b"], 2, "does not divide n_layers=2"),
        (["a", "b"], 3, "does not divide n_layers=3; model.layers.truncate=true"),
    ],
)
def test_a_wrong_pattern_is_refused(names: list[str], n_layers: int, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        pattern(n_layers=n_layers, kinds={"a": Block, "b": Block}, pattern=names, truncate=False)
    assert sentence in str(refused.value)


def test_a_kind_that_truncation_removes_has_no_layer() -> None:
    with pytest.raises(ValueError, match="uses no kind b in 2 layers"):
        pattern(n_layers=2, kinds={"a": Block, "b": Block}, pattern=["a", "a", "b"], truncate=True)


def test_a_key_that_one_kind_uses_takes_effect() -> None:
    gqa = sketch(*A_B, kinds(a="attn=gqa", b="attn=mha"), "model.n_kv_heads=1").layers()[0].attn
    assert gqa.n_kv_heads == 1
    sinks = tinyllm.compose(*A_B, kinds(a="", b="model.block.attn.window=4"), "model.block.attn.window=8")
    assert sinks.model.layers.kinds.a.attn.window == 8


MOE = {"moe": True, "n_exp": 4, "n_shared": 0, "n_act": 2}
PLACE = "(model.layers.json:2): "


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (line(n_head=...), f"key missing {PLACE}n_head=???: required for every layer"),
        (line(attn="gqa"), f"key missing {PLACE}n_kv_heads=???: required with attn=gqa"),
        (line(attn="mla", kv_latent_dim=8, q_latent_dim=None), f"{PLACE}rope_head_dim=???: required with attn=mla"),
        (line(**MOE), f"key missing {PLACE}aux_free=???: required with moe=true"),
        (line(**MOE, aux_free=False), f"key missing {PLACE}coeff=???: required with aux_free=false"),
        (line(**MOE, aux_free=True, gamma=0.1), f"key missing {PLACE}alpha=???: required with aux_free=true"),
        (line(n_kv_heads=2), f"no effect here {PLACE}n_kv_heads=2: attn=mha, moe=false does not use it"),
        (line(coeff=0.1), f"no effect here {PLACE}coeff=0.1: attn=mha, moe=false does not use it"),
        (line(**MOE, aux_free=False, coeff=0.1, gamma=0.1), f"no effect here {PLACE}gamma=0.1"),
        (line(n_heads=4), f"unknown key {PLACE}n_heads=4: did you mean n_head?"),
        (line(colour="red"), f"unknown key {PLACE}colour=red: the keys are attn, n_head"),
        (line(n_head="4"), f"wrong type {PLACE}n_head=4: must be a whole number"),
        (line(n_head=True), f"wrong type {PLACE}n_head=true: must be a whole number"),
        (line(moe=1), f"wrong type {PLACE}moe=1: must be true or false"),
        (line(attn=None), f"wrong type {PLACE}attn=null: must be text"),
        ('{"attn":', "not JSON (model.layers.json:2): Expecting value at column 9"),
        ("3", "not a layer (model.layers.json:2): must be an object with the keys attn, n_head"),
        ('{"attn": "mha", "attn": "mqa"}', "not a layer (model.layers.json:2): the key attn occurs 2 times"),
        ('{"up_dim": NaN}', "not a layer (model.layers.json:2): NaN is not a JSON number"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_refused(second: str, sentence: str) -> None:
    known = {"mha": set(), "gqa": {"n_kv_heads"}, "mla": {"q_latent_dim", "kv_latent_dim", "rope_head_dim"}}
    with pytest.raises(UserError) as refused:
        read_layers(f"{line()}\n{second}", source="model.layers.json", parameters=known.__getitem__)
    assert sentence in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (line(attn="mla", kv_latent_dim=8, q_latent_dim=None), f"{PLACE}rope_head_dim=???: required with attn=mla"),
        (line(attn="mgha"), f"no such option {PLACE}attn=mgha: did you mean"),
        (line(attn="mha,mqa"), f"more than one value {PLACE}attn=mha,mqa"),
        (line(n_head=5), "(model.layers.kinds.line2.n_heads=5): d_model=128 is not divisible by n_heads=5"),
        (line(non_linearity="x,y"), "(model.layers.kinds.line2.ffn.activation=x,y): activation=x,y is not known"),
        ("", "objects does not match the number of layers (model.layers.json): 1 object, but model.n_layers=2"),
        (line() + "\n" + line(), "the number of objects does not match the number of layers (model.layers.json): 3"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit_the_model_are_refused(second: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        sketch(*TWO, f"model.layers.json={line()}\n{second}")
    assert sentence in str(refused.value)


def test_errors_of_files_and_arrays_name_the_place(tmp_path: Path) -> None:
    file = tmp_path / "layers.jsonl"
    file.write_text(f"{line()}\n\n{line(n_head=...)}\n")
    for given, sentence in {
        f"model.layers.path={file}": f"({file}:3): n_head=???",
        f"model.layers.json=[{line()}, {line(n_head=...)}]": "(model.layers.json, object 2): n_head=???",
        f"model.layers.json=[{line()},\n\n{line(n_head=...)}]": "(model.layers.json:3): n_head=???",
        f"model.layers.json=[{line()},\n{line()}": "not JSON (model.layers.json:2): ",
        f"model.layers.path={tmp_path}": f"unreadable file (model.layers.path={tmp_path})",
        "model.layers.json=[]": "(model.layers.json): 0 objects",
    }.items():
        with pytest.raises(UserError) as refused:
            sketch(*TWO, given)
        assert sentence in str(refused.value)
    for both, sentence in (((), "no layers are given"), ((f"path={file}", "json=[]"), "the layers are given twice")):
        with pytest.raises(UserError, match=sentence):
            sketch(*TWO, *(f"model.layers.{one}" for one in both))


@pytest.mark.slow
@pytest.mark.parametrize("named", ["attn=mqa", "model.n_heads=2", "model.d_ff=8", "model.block.ffn.activation=relu"])
def test_a_key_that_every_line_replaces_is_refused(named: str) -> None:
    with pytest.raises(UserError, match="the key has no effect here") as refused:
        sketch(*TWO, f"model.layers.json={line()}\n{line()}", named)
    assert named.partition("=")[0] in str(refused.value)


def test_read_layers_returns_the_expected_overrides() -> None:
    [one] = read_layers(line(attn="gqa", n_kv_heads=2), source="x", parameters=lambda attn: {"n_kv_heads", "bias"})
    assert (one.name, one.place) == ("line1", "x:1")
    assert set(one.overrides) == {
        "moe=none", "ffn=mlp", 'model.block.ffn.activation="relu"', "model.block.ffn.d_ff=64", "attn=gqa",
        "model.n_heads=4", "model.n_kv_heads=2",
    }  # fmt: skip


def test_overrides_are_split_at_unquoted_spaces() -> None:
    assert words("") == words("  ") == []
    assert words(" attn=mqa\n 'model.x=[1, 2]'  a={b: \"c d\"}") == ["attn=mqa", "model.x=[1, 2]", 'a={b: "c d"}']


def test_kinds_may_use_the_users_options(tmp_path: Path) -> None:
    (tmp_path / "attn").mkdir()
    (tmp_path / "attn" / "near.yaml").write_text("# @package model.block.attn\ndefaults: [mha, _self_]\nwindow: 3\n")
    cfg = tinyllm.compose(*A_B, kinds(a="", b="attn=near"), config_dir=tmp_path)
    assert cfg.model.layers.kinds.b.attn.window == 3


def test_an_experiment_may_describe_the_layers(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mixed.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /layers: pattern\nmodel:\n  layers:\n    kinds:\n"
        "      a: ''\n      b: attn=mqa\n    pattern: [a, b]\n"
    )
    assert parts(sketch("experiment=mixed", config_dir=tmp_path)) == ["MHA+MLP", "MQA+MLP"] * 2
