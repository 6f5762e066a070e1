"""Unsupported compositions and configs are refused in one line naming the key; defaults equal transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import hub
from tests.support.options import described
from tinyllm.config.build import build
from tinyllm.config.compose import compose
from tinyllm.errors import UserError
from tinyllm.interop.architecture import architecture_of, settings_of
from tinyllm.interop.directory import ModelDirectory
from tinyllm.interop.families import FAMILIES, family_for
from tinyllm.interop.family import REQUIRED, Family
from tinyllm.programs.builders import build_model

LLAMA = ("ffn=swiglu",)
SMALL = ("model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.d_ff=64")
GPT2 = ("pos=learned", "norm=layernorm", "model.bias=true", "ffn=mlp")
DEEPSEEK = ("attn=mla", "ffn=swiglu", "moe=aux_free")
MIXTRAL = ("ffn=swiglu", "moe=aux_loss", "model.block.moe.n_shared=0", "model.block.moe.n_active=2")


def built(*overrides: str) -> Any:
    with torch.device("meta"):
        return build(described((*SMALL, *overrides)), path="model", vocab_size=30)


FITTING = {
    "GPT-2": (*GPT2, "model.block.ffn.activation=gelu_tanh"),
    "Llama": (*LLAMA, "attn=mqa", "model.bias=true"),
    "Qwen2": (*LLAMA, "model.block.attn.qkv_bias=true"),
    "SmolLM3": (*LLAMA, "model.block.attn.nope=true"),
    "Qwen3": (*LLAMA, "model.block.attn.qk_norm=true"),
    "Mistral": (*LLAMA, "model.block.attn.window=8"),
    "Mixtral": MIXTRAL,
    "Qwen3-MoE": (*MIXTRAL, "model.block.attn.qk_norm=true"),
    "DeepSeek-V3": DEEPSEEK,
    "DeepSeek-V2": ("attn=mla", "ffn=swiglu", "moe=aux_loss", "model.block.moe.normalize=false"),
}


@pytest.mark.parametrize("title", FITTING)
def test_composition_finds_its_family_and_survives_a_round_trip(title: str) -> None:
    arch = architecture_of(built(*FITTING[title]))
    family = family_for(arch)
    assert family.title == title
    config = json.loads(json.dumps(family.write(arch)))
    assert family.read(config) == arch
    cfg = compose(*settings_of(arch))
    again = build_model(cfg, vocab_size=30, seed=0, device=torch.device("meta"), allow=frozenset())
    assert architecture_of(again) == arch


@pytest.mark.parametrize(
    ("overrides", "named", "allowed"),
    [
        ((), "(ffn=mlp)", "ffn=glu"),
        ((*LLAMA, "pos=none"), "(pos=none)", "pos=rope"),
        ((*LLAMA, "pos=sinusoidal"), "(pos=sinusoidal)", "pos=rope"),
        ((*LLAMA, "norm=layernorm"), "(norm=layernorm)", "norm=rmsnorm"),
        ((*LLAMA, "model.parallel_block=true"), "(model.parallel_block=true)", "model.parallel_block=false"),
        ((*LLAMA, "model.short_conv=4"), "(model.short_conv=4)", "model.short_conv=0"),
        ((*LLAMA, "model.block.attn.softcap=30"), "(model.block.attn.softcap=30", "model.block.attn.softcap=0"),
        (
            (*LLAMA, "model.block.attn.window=8", "model.block.attn.sinks=2"),
            "(model.block.attn.sinks=2)",
            "model.block.attn.sinks=0",
        ),
        ((*GPT2, "model.bias=false"), "=false)", "=true"),
        ((*GPT2, "attn=gqa", "model.n_kv_heads=1"), "(attn=mqa)", "attn=mha"),
        ((*GPT2, "model.block.ffn.activation=selu"), "(model.block.ffn.activation=selu)", "activation=gelu"),
        ((*MIXTRAL, "model.block.moe.router=sigmoid"), "(model.block.moe.router=sigmoid)", "router=softmax"),
        (("ffn=swiglu", "moe=aux_loss"), "(model.block.moe.n_shared=1)", "n_shared=0"),
        ((*MIXTRAL, "model.block.moe.n_active=1"), "(model.block.moe.normalize=false)", "normalize=true"),
        ((*DEEPSEEK, "model.block.moe.router=softmax"), "(model.block.moe.router=softmax)", "router=sigmoid"),
        ((*DEEPSEEK, "pos=none"), "(pos=none)", "pos=rope"),
        ((*DEEPSEEK, "model.block.attn.latent_norm_eps=1e-5"), "latent_norm_eps=1e-05", "latent_norm_eps=1e-06"),
        ((*DEEPSEEK, "model.block.attn.window=8"), "(model.block.attn.window=8)", "window=0"),
        (
            (
                *DEEPSEEK,
                "layers=pattern",
                'model.layers.kinds={a:"",b:"moe=none"}',
                "model.layers.pattern=[a,b]",
            ),
            "model.layers.pattern=",
            "dense layers first",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_composition_without_a_family_is_refused(overrides: tuple[str, ...], named: str, allowed: str) -> None:
    with pytest.raises(UserError) as refused:
        family_for(architecture_of(built(*overrides)))
    assert named in str(refused.value)
    assert allowed in str(refused.value)


ABSENT = "absent"
BASIC: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "intermediate_size": 24,
    }
}
BASIC["gpt2"] = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2}
for name in ("qwen2", "qwen3", "qwen3_moe", "mixtral", "mistral", "smollm3"):
    BASIC[name] = BASIC["llama"] | {"num_key_value_heads": 2}
BASIC["deepseek_v3"] = BASIC["qwen2"] | {"n_group": 1, "topk_group": 1}
BASIC["deepseek_v2"] = BASIC["llama"] | {"num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("model_type", "changed", "named"),
    [
        ("bert", {}, "model_type=bert"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "num_labels=2"),
        ("llama", {"architectures": ["LlamaForTokenClassification"]}, "architectures=LlamaForTokenClassification"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type=longrope"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_parameters.low_freq_factor"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "rope_parameters.factor=2"),
        ("llama", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "rope_parameters.factor=2.0"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention="),
        ("llama", {"rope_theta": "${oc.env:HOME}"}, "rope_theta=${oc.env:HOME}"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act=quick_gelu"),
        ("llama", {"hidden_size": ABSENT}, "hidden_size"),
        ("llama", {"hidden_size": "16"}, "hidden_size=16"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
        ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier=12.0"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("llama", {"is_causal": False}, "is_causal=false"),
        ("llama", {"sliding_window": 8}, "sliding_window=8"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=false"),
        ("gpt2", {"activation_function": "gelu_10"}, "activation_function=gelu_10"),
        ("gpt2", {"rope_theta": 10000.0}, "rope_theta=10000.0"),
        ("gpt2", {"hidden_size": 32}, "hidden_size=32"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types="),
        ("mistral", {"attention_bias": True}, "attention_bias=true"),
        ("qwen2", {"attention_bias": False}, "attention_bias=false"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types="),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers=[1]"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok=9"),
        ("qwen3_moe", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types="),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=true"),
        ("deepseek_v3", {"n_group": 3, "topk_group": 2, "first_k_dense_replace": 1}, "n_group=3"),
        ("deepseek_v3", {"attention_bias": True, "q_lora_rank": None}, "attention_bias=true"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func=softmax"),
    ],
    ids=str,
)
def test_unsupported_config_is_refused(model_type: str, changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    content = {"model_type": model_type, **BASIC.get(model_type, {}), **changed}
    content = {name: value for name, value in content.items() if value is not ABSENT}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        ModelDirectory(tmp_path)
    assert named in str(refused.value)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_defaults_equal_those_of_transformers(family: Family) -> None:
    from transformers import CONFIG_MAPPING

    hub.quiet()
    theirs = CONFIG_MAPPING[family.model_type]()
    given = CONFIG_MAPPING[family.model_type].__dataclass_fields__
    for one in (*family.entries, *family.interpreted):
        name = next((name for name in (one.name, *one.also) if name in given), None)
        if one.default is not REQUIRED and name is not None:
            assert given[name].default == one.default, one.name
    for only in family.fixed:
        if hasattr(theirs, only.name):
            assert getattr(theirs, only.name) == only.value, only.name
    assert family.architecture.startswith(type(theirs).__name__.removesuffix("Config"))
