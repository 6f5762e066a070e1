"""The families with one feed-forward layer for every token."""

from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, Architecture
from tinyllm.interop.family import ACTIVATIONS, COMMON, Config, Entry, Family, Mismatch, Only, refused
from tinyllm.interop.layouts import Transposed, Weight
from tinyllm.interop.rope import HeadsFamily, parts


class GPT2(Family):
    """openai-community/gpt2 (Radford et al. 2019); its linear layers are stored transposed."""

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
        f"{FFN}.bias": (True,),
        f"{ATTN}.qk_norm": (False,),
        f"{ATTN}.window": (0,),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        Entry("vocab_size", "model.vocab_size"),
        Entry("n_embd", "model.d_model", also=("hidden_size",)),
        Entry("n_layer", "model.n_layers", also=("num_hidden_layers",)),
        Entry("n_head", "model.n_heads", also=("num_attention_heads",)),
        Entry("n_positions", "model.max_seq_len", 1024, also=("max_position_embeddings",)),
        Entry("n_inner", f"{FFN}.d_ff", None),
        Entry("activation_function", f"{FFN}.activation", "gelu_new", names=ACTIVATIONS),
        Entry("layer_norm_epsilon", "model.norm.eps", 1e-5),
        Entry("tie_word_embeddings", "model.tie_embeddings", True),
    )
    only = (
        Only("scale_attn_weights", True, True),
        Only("scale_attn_by_inverse_layer_idx", False, False),
        Only("add_cross_attention", False, False),
    )
    written: ClassVar[dict[str, Any]] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        found = super().mismatches(arch)
        own, derived = arch.values(f"{ATTN}.head_dim"), arch.value("model.d_model") // arch.value("model.n_heads")
        return found + [Mismatch(f"{ATTN}.head_dim", one, (derived,)) for one in own if one != derived]

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        n_heads, d_model = values["model.n_heads"], values["model.d_model"]
        derived = {"model.n_kv_heads": n_heads, f"{ATTN}.head_dim": d_model // n_heads}
        derived[f"{FFN}.d_ff"] = values[f"{FFN}.d_ff"] or 4 * d_model
        return super().arrange(config, values | derived)

    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        found = [
            Weight("embedding.weight", ("transformer.wte.weight",)),
            Weight("pos.table.weight", ("transformer.wpe.weight",)),
        ]
        if not arch.value("model.tie_embeddings"):
            found.append(Weight("head.weight", ("lm_head.weight",)))
        norms = [("norm", "ln_f")]
        for i in range(len(arch.layers)):
            ours, theirs = f"blocks.{i}", f"h.{i}"
            norms += [(f"{ours}.norm1", f"{theirs}.ln_1"), (f"{ours}.norm2", f"{theirs}.ln_2")]
            for one, other in (
                ("attn.qkv", "attn.c_attn"),
                ("attn.out", "attn.c_proj"),
                ("ffn.up", "mlp.c_fc"),
                ("ffn.down", "mlp.c_proj"),
            ):
                name = f"transformer.{theirs}.{other}"
                found.append(Weight(f"{ours}.{one}.weight", (f"{name}.weight",), Transposed()))
                found.append(Weight(f"{ours}.{one}.bias", (f"{name}.bias",)))
        for one, other in norms:
            found += [Weight(f"{one}.{part}", (f"transformer.{other}.{part}",)) for part in parts(True)]
        return found

    def ignored(self, name: str, config: Config) -> bool:
        return name.endswith((".attn.bias", ".attn.masked_bias"))  # the causal mask


class Llama(HeadsFamily):
    """Touvron et al. 2023; with fewer key-value heads Llama 2 and 3."""

    title = "Llama"
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {
        f"{ATTN}.qk_norm": (False,),
        f"{ATTN}.window": (0,),
        f"{ATTN}.bias": (False, True),
        f"{FFN}.bias": (False, True),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        *HeadsFamily.entries,
        Entry("intermediate_size", f"{FFN}.d_ff"),
        Entry("attention_bias", f"{ATTN}.bias", False),
        Entry("mlp_bias", f"{FFN}.bias", False),
    )

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        d_model, n_heads = arch.value("model.d_model"), arch.value("model.n_heads")
        uneven = [Mismatch("model.d_model", d_model, (f"a multiple of {n_heads} heads",))] if d_model % n_heads else []
        return super().mismatches(arch) + uneven


class Qwen3(HeadsFamily):
    """Qwen3 (Yang et al. 2025): norms on queries and keys; a window in all layers or in some."""

    title = "Qwen3"
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {
        f"{ATTN}.qk_norm": (True,),
        f"{ATTN}.bias": (False, True),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        *HeadsFamily.entries[:-1],
        Entry("head_dim", f"{ATTN}.head_dim", 128),
        Entry("intermediate_size", f"{FFN}.d_ff"),
        Entry("attention_bias", f"{ATTN}.bias", False),
    )
    varying: ClassVar[dict[str, Any]] = {f"{ATTN}.window": 0}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        windows = [one for one in arch.values(f"{ATTN}.window") if one]
        several = [Mismatch(f"{ATTN}.window", one, (0, windows[0])) for one in windows[1:]]
        return super().mismatches(arch) + several

    def write(self, arch: Architecture) -> dict[str, Any]:
        windows = [layer[f"{ATTN}.window"] for layer in arch.layers]
        first = next((i for i, window in enumerate(windows) if window), len(windows))
        return super().write(arch) | {
            "use_sliding_window": any(windows),
            "sliding_window": max(windows) or None,
            "max_window_layers": first,
            "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        }

    def differing(self, config: Config, layer: int, values: dict[str, Any]) -> dict[str, Any]:
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
        types = config.get("layer_types")
        if types is None:
            slides = layer >= config.get("max_window_layers", 28)
        elif len(types) != values["model.n_layers"] or types[layer] not in ("full_attention", "sliding_attention"):
            raise refused("layer_types", types, "full_attention or sliding_attention for each layer")
        else:
            slides = types[layer] == "sliding_attention"
        return {f"{ATTN}.window": window if slides and window else 0}


WINDOW = Entry("sliding_window", f"{ATTN}.window", 4096, null=0)


class Mistral(HeadsFamily):
    """Mistral 7B (Jiang et al. 2023): Llama with a window."""

    title = "Mistral"
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = HeadsFamily.allowed | {f"{ATTN}.qk_norm": (False,)}
    entries: ClassVar[tuple[Entry, ...]] = (
        *HeadsFamily.entries,
        Entry("intermediate_size", f"{FFN}.d_ff"),
        WINDOW,
    )
