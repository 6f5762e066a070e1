"""Families of dense models: every token goes through the same feed-forward layer."""

from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, Architecture
from tinyllm.interop.entry_types import (
    ANY,
    FLAG,
    FLOAT,
    HEADS,
    LAYERS,
    POSITIONS,
    SHARE,
    TEXT,
    VOCABULARY,
    WIDTH,
    EntryType,
    listed,
    nullable,
    whole,
)
from tinyllm.interop.family import (
    ACTIVATIONS,
    COMMON,
    Config,
    ConfigEntry,
    Family,
    FixedEntry,
    MappedEntry,
    Mismatch,
    mapped,
    refused,
    replaced,
)
from tinyllm.interop.layouts import TransposedLayout, Weight
from tinyllm.interop.llama_like import HeadsFamily, WindowedFamily, linear_parts


class GPT2(Family):
    """GPT-2 (Radford et al. 2019). Its linear layers are stored transposed."""

    title = "GPT-2"
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = COMMON | {
        "pos": ("learned",),
        "norm": ("layernorm",),
        "attn": ("mha",),
        "ffn": ("mlp",),
        "moe": ("none",),
        "model.bias": (True,),
        f"{ATTN}.bias": (True,),
        f"{ATTN}.qkv_bias": (True,),
        f"{ATTN}.nope": (False,),
        f"{FFN}.bias": (True,),
        f"{ATTN}.qk_norm": (False,),
        f"{ATTN}.window": (0,),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = (
        mapped("vocab_size", "model.vocab_size", type=VOCABULARY),
        mapped("n_embd", "model.d_model", also=("hidden_size",)),
        mapped("n_layer", "model.n_layers", type=LAYERS, also=("num_hidden_layers",)),
        mapped("n_head", "model.n_heads", type=HEADS, also=("num_attention_heads",)),
        mapped("n_positions", "model.max_seq_len", 1024, type=POSITIONS, also=("max_position_embeddings",)),
        mapped("n_inner", f"{FFN}.d_ff", None, type=nullable(WIDTH)),
        mapped("activation_function", f"{FFN}.activation", "gelu_new", type=TEXT, names=ACTIVATIONS),
        mapped("layer_norm_epsilon", "model.norm.eps", 1e-5, type=FLOAT),
        mapped("tie_word_embeddings", "model.tie_embeddings", True, type=FLAG),
    )
    fixed = (
        FixedEntry("scale_attn_weights", True),
        FixedEntry("scale_attn_by_inverse_layer_idx", False),
        FixedEntry("add_cross_attention", False),
    )
    harmless: ClassVar[dict[str, EntryType]] = {
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), SHARE),
        **dict.fromkeys(("reorder_and_upcast_attn", "summary_use_proj", "summary_proj_to_labels"), FLAG),
        **dict.fromkeys(("n_ctx", "gradient_checkpointing"), ANY),
        "summary_type": TEXT,
        "summary_activation": nullable(TEXT),
    }
    written: ClassVar[dict[str, Any]] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        mismatches = super().mismatches(arch)
        head_dims, derived = arch.values(f"{ATTN}.head_dim"), arch.value("model.d_model") // arch.value("model.n_heads")
        return mismatches + [Mismatch(f"{ATTN}.head_dim", dim, (derived,)) for dim in head_dims if dim != derived]

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        n_heads, d_model = values["model.n_heads"], values["model.d_model"]
        if d_model % n_heads:
            raise refused("n_head", n_heads, f"a divisor of n_embd={d_model}")
        derived = {"model.n_kv_heads": n_heads, f"{ATTN}.head_dim": d_model // n_heads}
        derived[f"{FFN}.d_ff"] = values[f"{FFN}.d_ff"] or 4 * d_model
        return super().arrange(entries, values | derived)

    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        weights = [
            Weight("embedding.weight", ("transformer.wte.weight",)),
            Weight("pos.table.weight", ("transformer.wpe.weight",)),
        ]
        if not arch.value("model.tie_embeddings"):
            weights.append(Weight("head.weight", ("lm_head.weight",)))
        norms = [("norm", "ln_f")]
        for i in range(len(arch.layers)):
            name, hf_name = f"blocks.{i}", f"h.{i}"
            norms += [(f"{name}.norm1", f"{hf_name}.ln_1"), (f"{name}.norm2", f"{hf_name}.ln_2")]
            for layer, hf_layer in (
                ("attn.qkv", "attn.c_attn"),
                ("attn.out", "attn.c_proj"),
                ("ffn.up", "mlp.c_fc"),
                ("ffn.down", "mlp.c_proj"),
            ):
                prefix = f"transformer.{hf_name}.{hf_layer}"
                weights.append(Weight(f"{name}.{layer}.weight", (f"{prefix}.weight",), TransposedLayout()))
                weights.append(Weight(f"{name}.{layer}.bias", (f"{prefix}.bias",)))
        for norm, hf_norm in norms:
            weights += [Weight(f"{norm}.{part}", (f"transformer.{hf_norm}.{part}",)) for part in linear_parts(True)]
        return weights

    def ignored(self, name: str, config: Config) -> bool:
        return name.endswith((".attn.bias", ".attn.masked_bias"))  # the causal mask


INTERMEDIATE = mapped("intermediate_size", f"{FFN}.d_ff")
KV_HEADS = "num_key_value_heads"


class Llama(HeadsFamily):
    """Llama (Touvron et al. 2023), Llama 2 with grouped-query attention, Llama 3 with scaled rotary positions."""

    title = "Llama"
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    even_heads = True
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {
        f"{ATTN}.qk_norm": (False,),
        f"{ATTN}.window": (0,),
        f"{ATTN}.bias": (False, True),
        f"{FFN}.bias": (False, True),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = (
        *HeadsFamily.entries,
        INTERMEDIATE,
        mapped("attention_bias", f"{ATTN}.bias", False, type=FLAG),
        mapped("mlp_bias", f"{FFN}.bias", False, type=FLAG),
    )


WINDOW_LAYERS = ConfigEntry("max_window_layers", whole(0), 28)


class Qwen2(WindowedFamily):
    """Qwen2 and Qwen2.5 (Yang et al. 2024): biases on queries, keys and values only."""

    title = "Qwen2"
    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    qkv_bias: ClassVar[bool | None] = True
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {f"{ATTN}.qk_norm": (False,)}
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        HeadsFamily.entries,
        INTERMEDIATE,
        mapped(KV_HEADS, "model.n_kv_heads", 32, type=nullable(HEADS)),
    )
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (*WindowedFamily.interpreted, WINDOW_LAYERS)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.neutral | {"attention_bias": (True,)}

    def write(self, arch: Architecture) -> dict[str, Any]:
        return super().write(arch) | {"max_window_layers": first_window(arch)}

    def slides(self, entries: Config, layer: int) -> bool:
        return bool(layer >= entries["max_window_layers"])


def first_window(arch: Architecture) -> int:
    """The index of the first layer with a window, for programs that do not read ``layer_types``."""
    windows = [layer[f"{ATTN}.window"] for layer in arch.layers]
    return next((i for i, window in enumerate(windows) if window), len(windows))


class Qwen3(Qwen2):
    """Qwen3 (Yang et al. 2025): norms on queries and keys instead of biases."""

    title = "Qwen3"
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    qkv_bias = None
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {
        f"{ATTN}.qk_norm": (True,),
        f"{ATTN}.bias": (False, True),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        Qwen2.entries,
        mapped("head_dim", f"{ATTN}.head_dim", 128),
        mapped("attention_bias", f"{ATTN}.bias", False, type=FLAG),
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.neutral


class Mistral(HeadsFamily):
    """Mistral 7B (Jiang et al. 2023): Llama with a sliding window."""

    title = "Mistral"
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {f"{ATTN}.qk_norm": (False,)}
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        HeadsFamily.entries,
        INTERMEDIATE,
        mapped(KV_HEADS, "model.n_kv_heads", 8, type=nullable(HEADS)),
        mapped("sliding_window", f"{ATTN}.window", 4096, type=nullable(whole()), null=0),
    )


class SmolLM3(WindowedFamily):
    """SmolLM3 (Hugging Face 2025): every fourth layer has no rotary positions (NoPE), and may have a window."""

    title = "SmolLM3"
    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    theta = 2000000.0
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {
        f"{ATTN}.qk_norm": (False,),
        f"{ATTN}.bias": (False, True),
        f"{ATTN}.nope": (False, True),
        f"{FFN}.bias": (False, True),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        Llama.entries,
        mapped(KV_HEADS, "model.n_kv_heads", 4, type=nullable(HEADS)),
        mapped("tie_word_embeddings", "model.tie_embeddings", True, type=FLAG),
    )
    varying: ClassVar[dict[str, Any]] = WindowedFamily.varying | {f"{ATTN}.nope": False}
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (
        *WindowedFamily.interpreted[:-1],
        ConfigEntry("sliding_window", nullable(whole()), None),
        ConfigEntry("no_rope_layers", nullable(listed(whole(0, 1))), None),
        ConfigEntry("no_rope_layer_interval", whole(), 4),
    )
    harmless: ClassVar[dict[str, EntryType]] = HeadsFamily.harmless | {"max_window_layers": whole(0)}

    def write(self, arch: Architecture) -> dict[str, Any]:
        with_rope = [int(not layer[f"{ATTN}.nope"]) for layer in arch.layers]  # the name says the opposite
        return super().write(arch) | {"no_rope_layers": with_rope, "no_rope_layer_interval": 4}

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        with_rope = entries["no_rope_layers"]
        if with_rope is not None and len(with_rope) < values["model.n_layers"]:
            raise refused("no_rope_layers", with_rope, "a 0 or 1 for each layer")
        layers = super().layers(entries, values)
        return [layer | {f"{ATTN}.nope": not self.has_rope(entries, i)} for i, layer in enumerate(layers)]

    def has_rope(self, entries: Config, layer: int) -> bool:
        """Whether a layer has rotary positions."""
        with_rope = entries["no_rope_layers"]
        return bool((layer + 1) % entries["no_rope_layer_interval"] if with_rope is None else with_rope[layer])

    def slides(self, entries: Config, layer: int) -> bool:
        return not self.has_rope(entries, layer)
