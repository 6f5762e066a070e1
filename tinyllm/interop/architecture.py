"""A model's architecture as values by configuration key: read from a built model, turned back into overrides."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinyllm.errors import UserError
from tinyllm.models.block import Block
from tinyllm.models.transformer import Transformer
from tinyllm.nn.attention.mha import GQA, MHA, MQA
from tinyllm.nn.attention.mla import MLA
from tinyllm.nn.feedforward import ACTIVATIONS, GATES, GLU, MLP, FeedForward
from tinyllm.nn.moe import SCORES, AuxFree, AuxLoss, Mixture
from tinyllm.nn.norm import LayerNorm, RMSNorm
from tinyllm.nn.position import Learned, NoPosition, Rope, Sinusoidal
from tinyllm.nn.rope import LinearRope, Llama3Rope, NtkRope, YarnRope

NORMS: dict[type[nn.Module], str] = {RMSNorm: "rmsnorm", LayerNorm: "layernorm"}
POSITIONS: dict[type[nn.Module], str] = {
    Rope: "rope",
    LinearRope: "rope_linear",
    NtkRope: "rope_ntk",
    YarnRope: "rope_yarn",
    Llama3Rope: "rope_llama3",
    Learned: "learned",
    Sinusoidal: "sinusoidal",
    NoPosition: "none",
}
SCALED = ("factor", "original_max_seq_len")
POSITION_KEYS: dict[type[nn.Module], tuple[str, ...]] = {
    Rope: (),
    LinearRope: ("factor",),
    NtkRope: SCALED,
    YarnRope: (
        *SCALED,
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    Llama3Rope: (*SCALED, "low_freq_factor", "high_freq_factor"),
}
"""Parameters of the rotary positions besides the base; attributes and configuration keys have the same names."""
HEADS = (MHA, MQA, GQA)
MIXTURES: dict[type[nn.Module], str] = {AuxLoss: "aux_loss", AuxFree: "aux_free"}
ATTN, FFN, MOE = "model.block.attn", "model.block.ffn", "model.block.moe"
BIASES = ("model.bias", f"{ATTN}.bias", f"{FFN}.bias")
CHOICES = ("norm", "pos", "attn", "ffn", "moe")
"""Config groups of a model's parts."""


@dataclass(frozen=True)
class Architecture:
    """The values that decide what a model computes, without training settings.

    Attributes:
        model: values of the whole model by configuration key.
        layers: values of each block, in order. Keys without effect in a block are absent (``d_ff`` in a mixture).
    """

    model: dict[str, Any]
    layers: list[dict[str, Any]]

    def values(self, key: str) -> list[Any]:
        """The distinct values of a key in the order of the layers; empty if neither model nor layers have it."""
        if key in self.model:
            return [self.model[key]]
        return unique(layer[key] for layer in self.layers if key in layer)

    def value(self, key: str) -> Any:
        """The value of a key in the first layer that has it.

        Raises:
            KeyError: neither model nor layers have it.
        """
        for value in self.values(key):
            return value
        raise KeyError(key)


def unique(values: Iterable[Any]) -> list[Any]:
    """The distinct values in order; they need not be hashable."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct


def architecture_of(model: Transformer) -> Architecture:
    """The architecture of a built model; a model on the meta device suffices.

    Raises:
        UserError: a part is a custom class.
    """
    norm, pos = model.norm, model.pos
    values = {
        "norm": _name(NORMS, norm, "model.norm"),
        "model.norm.eps": norm.eps,
        "pos": _name(POSITIONS, pos, "model.pos"),
        "model.d_model": model.d_model,
        "model.n_layers": model.n_layers,
        "model.max_seq_len": model.max_seq_len,
        "model.vocab_size": model.vocab_size,
        "model.tie_embeddings": model.head is None,
    }
    if isinstance(norm, LayerNorm):
        values["model.bias"] = norm.bias is not None
    if isinstance(pos, Rope):
        values |= {f"model.pos.{key}": getattr(pos, key) for key in ("base", *POSITION_KEYS[type(pos)])}
    for block in model.layers():
        q_norm = getattr(block.attn, "q_norm", None) if isinstance(block.attn, MHA) else None
        if q_norm is not None and q_norm.eps != norm.eps:
            hint = f"transformers has a single eps for all norms, here {norm.eps}"
            key = f"{ATTN}.qk_norm_eps"
            raise UserError("this composition cannot be exported", key=key, value=q_norm.eps, hint=hint)
    return Architecture(values, [_layer(block) for block in model.layers()])


def _layer(block: Block) -> dict[str, Any]:
    values = {"model.parallel_block": block.parallel_block, "model.short_conv": block.short_conv}
    return values | _attention(block.attn) | _feed_forward(block.ffn)


def _attention(attn: nn.Module) -> dict[str, Any]:
    if type(attn) is MLA:
        values = {
            f"{ATTN}.kv_latent_dim": attn.latent_dim,
            f"{ATTN}.q_latent_dim": attn.q_down.out_features if attn.compresses_q else None,
            f"{ATTN}.rope_head_dim": attn.rope_dim,
            f"{ATTN}.nope_head_dim": attn.nope_dim,
            f"{ATTN}.v_head_dim": attn.v_dim,
            f"{ATTN}.latent_norm_eps": attn.kv_norm.eps,
        }
        kind, bias = "mla", attn.out.bias is not None
    elif type(attn) in HEADS:
        assert isinstance(attn, MHA)
        values = {f"{ATTN}.head_dim": attn.head_dim, f"{ATTN}.qk_norm": attn.q_norm is not None}
        values |= {"model.n_kv_heads": attn.n_kv_heads, f"{ATTN}.nope": attn.nope}
        values[f"{ATTN}.qkv_bias"] = attn.qkv.bias is not None
        kind, bias = heads_option(attn.n_heads, attn.n_kv_heads), attn.out.bias is not None
    else:
        raise _custom_part(ATTN, attn)
    shared = {f"{ATTN}.{name}": getattr(attn.mask, name) for name in ("window", "sinks", "softcap")}
    return {"attn": kind, "model.n_heads": attn.n_heads, f"{ATTN}.bias": bias} | values | shared


def heads_option(n_heads: int, n_kv_heads: int) -> str:
    """The option of ``attn`` with this many query and key-value heads."""
    return "mha" if n_kv_heads == n_heads else "mqa" if n_kv_heads == 1 else "gqa"


def _feed_forward(ffn: FeedForward) -> dict[str, Any]:
    if type(ffn) not in MIXTURES:
        return {"moe": "none", f"{FFN}.d_ff": ffn.d_ff} | _dense(ffn)
    assert isinstance(ffn, Mixture)
    n_shared = 0 if ffn.shared is None else ffn.shared.d_ff // ffn.d_ff
    values = {
        "n_experts": ffn.n_routed + n_shared,
        "n_shared": n_shared,
        "n_active": ffn.n_chosen + n_shared,
        "expert_d_ff": ffn.d_ff,
        "router": next(name for name, function in SCORES.items() if function is ffn.score),
        "routed_scale": ffn.routed_scale,
        "normalize": ffn.normalize,
    }
    limited = ffn.n_active_groups < ffn.n_groups
    values |= {"n_groups": ffn.n_groups if limited else 1, "n_active_groups": ffn.n_active_groups if limited else None}
    return (
        {"moe": MIXTURES[type(ffn)]} | {f"{MOE}.{name}": value for name, value in values.items()} | _dense(ffn.experts)
    )


def _dense(ffn: nn.Module) -> dict[str, Any]:
    if type(ffn) is GLU:
        gate = next(name for name, function in GATES.items() if function is ffn.act)
        return {"ffn": "glu", f"{FFN}.gate": gate, f"{FFN}.bias": ffn.down.bias is not None}
    if type(ffn) is MLP:
        activation = next(name for name, function in ACTIVATIONS.items() if function is ffn.act)
        return {"ffn": "mlp", f"{FFN}.activation": activation, f"{FFN}.bias": ffn.down.bias is not None}
    raise _custom_part(FFN, ffn)


def _name(names: dict[type[nn.Module], str], part: nn.Module, key: str) -> str:
    if type(part) not in names:
        raise _custom_part(key, part)
    return names[type(part)]


def _custom_part(key: str, part: nn.Module) -> UserError:
    hint = "transformers has no equivalent of a custom class"
    return UserError(
        "this composition cannot be exported", key=f"{key}._target_", value=type(part).__qualname__, hint=hint
    )


def settings_of(arch: Architecture) -> list[str]:
    """The command-line overrides that compose this architecture.

    The most frequent kind of layer becomes ``model.block``. If layers differ, every kind gets a name and
    ``layers=pattern`` lists the names in order.
    """
    kinds = unique(arch.layers)
    counts = [arch.layers.count(kind) for kind in kinds]
    base = dict(kinds[counts.index(max(counts))])
    values = arch.model | base
    defaults = dict.fromkeys((f"{ATTN}.window", f"{ATTN}.sinks", f"{ATTN}.softcap"), 0) | {
        f"{ATTN}.head_dim": values["model.d_model"] / values["model.n_heads"],
        f"{ATTN}.qk_norm": False,
        f"{ATTN}.q_latent_dim": None,
        f"{ATTN}.qkv_bias": values[f"{ATTN}.bias"],
        f"{ATTN}.nope": False,
        f"{MOE}.n_groups": 1,
        f"{MOE}.n_active_groups": None,
        "model.parallel_block": False,
        "model.short_conv": 0,
        "model.n_kv_heads": values.get("model.n_kv_heads") if values["attn"] != "gqa" else None,
    }
    bias = values[f"{FFN}.bias"]
    settings = [f"{key}={_text(key, values[key])}" for key in CHOICES]
    settings.append(f"model.bias={_text('model.bias', bias)}")
    if values[f"{ATTN}.bias"] != bias:
        settings.append(f"+{ATTN}.bias={_text(f'{ATTN}.bias', values[f'{ATTN}.bias'])}")
    settings += [
        f"{key}={_text(key, value)}"
        for key, value in values.items()
        if key not in CHOICES and key not in BIASES and not (key in defaults and defaults[key] == value)
    ]
    return settings if len(kinds) == 1 else [*settings, *_pattern(arch.layers, base)]


def _pattern(layers: list[dict[str, Any]], base: dict[str, Any]) -> list[str]:
    """``layers=pattern``: how each kind of layer differs from the base block, and the kind of every layer."""
    names: list[str] = []
    kinds: dict[str, str] = {}
    for layer in layers:
        changes = [
            f"{key}={_text(key, value)}" for key, value in layer.items() if key not in base or base[key] != value
        ]
        text = " ".join(changes)
        new = "main" if not changes else "dense" if "moe=none" in changes else f"other{len(kinds)}"
        name = next((name for name, known in kinds.items() if known == text), new)
        kinds[name] = text
        names.append(name)
    mapping = ",".join(f'{name}:"{text}"' for name, text in kinds.items())
    return ["layers=pattern", f"model.layers.kinds={{{mapping}}}", f"model.layers.pattern=[{','.join(names)}]"]


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar.

    Values may come from an untrusted config.json and become text that Hydra parses, so only null, booleans, numbers and
    plain names are allowed.

    Raises:
        UserError: the value is none of these.
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*", value)):
        return str(value)
    raise UserError(
        "invalid value in config.json",
        key=key,
        value=value,
        hint="must be null, true, false, a number or a plain name",
    )
