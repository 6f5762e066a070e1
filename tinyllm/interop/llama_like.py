"""Base classes of Llama and the families derived from it."""

from abc import abstractmethod
from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, Architecture, heads_option
from tinyllm.interop.entry_types import (
    FLAG,
    FLOAT,
    HEADS,
    LAYERS,
    POSITIONS,
    TEXT,
    VOCABULARY,
    WIDTH,
    EntryType,
    listed,
    nullable,
    whole,
)
from tinyllm.interop.family import COMMON, GATES, Config, ConfigEntry, Family, MappedEntry, Mismatch, mapped, refused
from tinyllm.interop.layouts import RowsLayout, Weight
from tinyllm.interop.rope_parameters import ROPE_ENTRIES, ROPES, WHOLE, ntk_mismatches, read_rope, write_rope


class RopeFamily(Family):
    """Families with rotary positions, RMSNorm and gated feed-forward layers.

    Attributes:
        theta: the base of the rotary positions if config.json has none.
        even_heads: whether transformers requires that num_attention_heads divides hidden_size.
    """

    theta: ClassVar[float] = 10000.0
    even_heads: ClassVar[bool] = False
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = COMMON | {
        "pos": ROPES,
        "norm": ("rmsnorm",),
        "ffn": ("glu",),
        "moe": ("none",),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = (
        mapped("vocab_size", "model.vocab_size", type=VOCABULARY),
        mapped("hidden_size", "model.d_model"),
        mapped("num_hidden_layers", "model.n_layers", type=LAYERS),
        mapped("num_attention_heads", "model.n_heads", type=HEADS),
        mapped("max_position_embeddings", "model.max_seq_len", type=POSITIONS),
        mapped("rms_norm_eps", "model.norm.eps", 1e-6, type=FLOAT),
        mapped("tie_word_embeddings", "model.tie_embeddings", False, type=FLAG),
        mapped("hidden_act", f"{FFN}.gate", "silu", type=TEXT, names=GATES),
    )
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (
        *ROPE_ENTRIES,
        ConfigEntry("layer_types", nullable(listed(TEXT)), None),
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "partial_rotary_factor": WHOLE,
        "rope_interleaved": (False,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "sliding_window": (None,),
        "use_sliding_window": (False,),
    }
    harmless: ClassVar[dict[str, EntryType]] = {"pretraining_tp": nullable(whole())}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        mismatches = super().mismatches(arch) + ntk_mismatches(arch)
        d_model, n_heads = arch.value("model.d_model"), arch.value("model.n_heads")
        if self.even_heads and d_model % n_heads:
            mismatches.append(Mismatch("model.d_model", d_model, (f"a multiple of {n_heads} heads",)))
        return mismatches

    def write(self, arch: Architecture) -> dict[str, Any]:
        return super().write(arch) | write_rope(arch)

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        if self.even_heads and values["model.d_model"] % values["model.n_heads"]:
            raise refused("hidden_size", values["model.d_model"], "a multiple of num_attention_heads")
        rope = read_rope(entries, theta=self.theta, context=values["model.max_seq_len"])
        return super().arrange(entries, values | rope)

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        check_layer_types(entries, values)
        return super().layers(entries, values)

    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        weights = [
            Weight("embedding.weight", ("model.embed_tokens.weight",)),
            Weight("norm.weight", ("model.norm.weight",)),
        ]
        if not arch.value("model.tie_embeddings"):
            weights.append(Weight("head.weight", ("lm_head.weight",)))
        for i, layer in enumerate(arch.layers):
            name, hf_name = f"blocks.{i}", f"model.layers.{i}"
            weights.append(Weight(f"{name}.norm1.weight", (f"{hf_name}.input_layernorm.weight",)))
            weights.append(Weight(f"{name}.norm2.weight", (f"{hf_name}.post_attention_layernorm.weight",)))
            weights += self.attention(layer, f"{name}.attn", f"{hf_name}.self_attn", config)
            weights += self.feed_forward(layer, f"{name}.ffn", hf_name)
        return weights

    @abstractmethod
    def attention(self, layer: dict[str, Any], name: str, hf_name: str, config: Config) -> list[Weight]:
        """The weights of one attention layer."""

    def feed_forward(self, layer: dict[str, Any], name: str, hf_name: str) -> list[Weight]:
        """The weights of one feed-forward layer; ``hf_name`` is the prefix of the whole block."""
        return glu_weights(name, f"{hf_name}.mlp", layer[f"{FFN}.d_ff"], bias=layer[f"{FFN}.bias"])


class HeadsFamily(RopeFamily):
    """Families with multi-head, grouped-query or multi-query attention.

    Attributes:
        qkv_bias: whether queries, keys and values have biases; None: if the output projection has one.
    """

    qkv_bias: ClassVar[bool | None] = None
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = RopeFamily.allowed | {
        "attn": ("mha", "gqa", "mqa"),
        f"{ATTN}.bias": (False,),
        f"{ATTN}.nope": (False,),
        f"{FFN}.bias": (False,),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = (
        *RopeFamily.entries,
        mapped("num_key_value_heads", "model.n_kv_heads", None, type=nullable(HEADS)),
        mapped("head_dim", f"{ATTN}.head_dim", None, type=nullable(WIDTH)),
    )

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        mismatches = super().mismatches(arch)
        for layer in arch.layers:
            wanted = layer[f"{ATTN}.bias"] if self.qkv_bias is None else self.qkv_bias
            if layer.get(f"{ATTN}.qkv_bias", wanted) != wanted:
                return [*mismatches, Mismatch(f"{ATTN}.qkv_bias", layer[f"{ATTN}.qkv_bias"], (wanted,))]
        return mismatches

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        n_heads = values["model.n_heads"]
        n_kv_heads = values["model.n_kv_heads"] or n_heads
        if n_heads % n_kv_heads:
            raise refused("num_key_value_heads", n_kv_heads, f"a divisor of num_attention_heads={n_heads}")
        head_dim = values[f"{ATTN}.head_dim"] or values["model.d_model"] // n_heads
        if head_dim < 2 or head_dim % 2:
            raise refused("head_dim", head_dim, "an even number, because rotary positions rotate pairs")
        derived = {"model.n_kv_heads": n_kv_heads, f"{ATTN}.head_dim": head_dim}
        derived[f"{ATTN}.qkv_bias"] = values[f"{ATTN}.bias"] if self.qkv_bias is None else self.qkv_bias
        return super().arrange(entries, values | derived | {"attn": heads_option(n_heads, n_kv_heads)})

    def attention(self, layer: dict[str, Any], name: str, hf_name: str, config: Config) -> list[Weight]:
        dim, heads, kv_heads = layer[f"{ATTN}.head_dim"], layer["model.n_heads"], layer["model.n_kv_heads"]
        rows = RowsLayout((heads * dim, kv_heads * dim, kv_heads * dim))
        weights = [
            Weight(f"{name}.qkv.{part}", tuple(f"{hf_name}.{x}_proj.{part}" for x in "qkv"), rows)
            for part in linear_parts(layer[f"{ATTN}.qkv_bias"])
        ]
        weights += [
            Weight(f"{name}.out.{part}", (f"{hf_name}.o_proj.{part}",)) for part in linear_parts(layer[f"{ATTN}.bias"])
        ]
        if layer[f"{ATTN}.qk_norm"]:
            weights += [Weight(f"{name}.{x}_norm.weight", (f"{hf_name}.{x}_norm.weight",)) for x in "qk"]
        return weights


FULL, SLIDING = "full_attention", "sliding_attention"


def check_layer_types(entries: Config, values: dict[str, Any]) -> None:
    """Refuse ``layer_types`` in families where transformers ignores them and uses a single window.

    Raises:
        UserError: they contradict that window.
    """
    types, expected = entries["layer_types"], SLIDING if values.get(f"{ATTN}.window") else FULL
    if types is not None and types != [expected] * values["model.n_layers"]:
        allowed = f"{expected} for every layer, because transformers ignores layer_types for this model_type and uses a"
        raise refused("layer_types", types, f"{allowed} single window")


class WindowedFamily(HeadsFamily):
    """Families with a sliding window in all layers or in some."""

    varying: ClassVar[dict[str, Any]] = {f"{ATTN}.window": 0}
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (
        *HeadsFamily.interpreted,
        ConfigEntry("use_sliding_window", FLAG, False),
        ConfigEntry("sliding_window", nullable(whole()), 4096),
    )

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        windows = [window for window in arch.values(f"{ATTN}.window") if window]
        others = [Mismatch(f"{ATTN}.window", window, (0, windows[0])) for window in windows[1:]]
        return super().mismatches(arch) + others

    def write(self, arch: Architecture) -> dict[str, Any]:
        windows = [layer[f"{ATTN}.window"] for layer in arch.layers]
        return super().write(arch) | {
            "use_sliding_window": any(windows),
            "sliding_window": max(windows) or None,
            "layer_types": [SLIDING if window else FULL for window in windows],
        }

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        n_layers = values["model.n_layers"]
        window = entries["sliding_window"] if entries["use_sliding_window"] else None
        types = entries["layer_types"]
        if types is None:
            types = [SLIDING if window and self.slides(entries, i) else FULL for i in range(n_layers)]
        if len(types) != n_layers or not {FULL, SLIDING}.issuperset(types):
            raise refused("layer_types", types, f"{FULL} or {SLIDING} for each layer")
        if SLIDING in types and not window:
            raise refused("layer_types", types, f"{FULL} without a window: use_sliding_window and sliding_window")
        return [{f"{ATTN}.window": window if type_ == SLIDING else 0} for type_ in types]

    @abstractmethod
    def slides(self, entries: Config, layer: int) -> bool:
        """Whether a layer has the window if there are no ``layer_types``."""


def glu_weights(name: str, hf_name: str, d_ff: int, *, bias: bool = False) -> list[Weight]:
    """The weights of a gated feed-forward layer."""
    weights = []
    for part in linear_parts(bias):
        names = (f"{hf_name}.gate_proj.{part}", f"{hf_name}.up_proj.{part}")
        weights.append(Weight(f"{name}.gate_up.{part}", names, RowsLayout((d_ff, d_ff))))
        weights.append(Weight(f"{name}.down.{part}", (f"{hf_name}.down_proj.{part}",)))
    return weights


def linear_parts(bias: bool) -> tuple[str, ...]:
    """The names of a linear layer's tensors."""
    return ("weight", "bias") if bias else ("weight",)
