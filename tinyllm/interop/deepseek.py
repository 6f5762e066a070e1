"""DeepSeek families: multi-head latent attention; mixtures with shared experts after the first, dense layers."""

import re
from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.entry_types import ANY, EXPERTS, FLAG, FLOAT, HEADS, TEXT, WIDTH, EntryType, nullable, whole
from tinyllm.interop.family import Config, ConfigEntry, FixedEntry, MappedEntry, Mismatch, mapped, refused, replaced
from tinyllm.interop.layouts import InterleavedLayout, Layout, SameLayout, Weight
from tinyllm.interop.llama_like import RopeFamily, glu_weights, linear_parts
from tinyllm.interop.mixtures import ACTIVE, PROJECTIONS, check_active, mixture_weights

DENSE = "first_k_dense_replace"


class Deepseek(RopeFamily):
    """The common part of DeepSeek-V2 and V3.

    Attributes:
        moe: the option of ``moe``.
        best_of_group: how many of its best experts score a group of experts.
    """

    moe: ClassVar[str]
    best_of_group: ClassVar[int] = 1
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = RopeFamily.allowed | {
        "attn": ("mla",),
        f"{ATTN}.window": (0,),
        f"{ATTN}.bias": (False, True),
        f"{ATTN}.latent_norm_eps": (1e-6,),
        f"{FFN}.bias": (False,),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = (
        *RopeFamily.entries,
        mapped("kv_lora_rank", f"{ATTN}.kv_latent_dim", 512),
        mapped("q_lora_rank", f"{ATTN}.q_latent_dim", 1536, type=nullable(WIDTH)),
        mapped("qk_rope_head_dim", f"{ATTN}.rope_head_dim", 64),
        mapped("qk_nope_head_dim", f"{ATTN}.nope_head_dim", 128),
        mapped("v_head_dim", f"{ATTN}.v_head_dim", 128),
        mapped("attention_bias", f"{ATTN}.bias", False, type=FLAG),
        mapped("intermediate_size", f"{FFN}.d_ff", 11008),
        mapped("moe_intermediate_size", f"{MOE}.expert_d_ff", 1407),
        mapped("routed_scaling_factor", f"{MOE}.routed_scale", 1.0, type=FLOAT),
    )
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (
        *RopeFamily.interpreted,
        ConfigEntry("num_key_value_heads", nullable(HEADS), None),
        ConfigEntry("n_group", nullable(EXPERTS), None),
        ConfigEntry("topk_group", nullable(EXPERTS), None),
        ConfigEntry("n_shared_experts", EXPERTS, 2),
        ConfigEntry("n_routed_experts", EXPERTS, 64, also=("num_experts",)),
        ConfigEntry(ACTIVE, EXPERTS),
        ConfigEntry(DENSE, whole(0), 0),
    )
    fixed: ClassVar[tuple[FixedEntry, ...]] = (FixedEntry("moe_layer_freq", 1),)
    harmless: ClassVar[dict[str, EntryType]] = RopeFamily.harmless | {
        **dict.fromkeys(("aux_loss_alpha", "ep_size"), ANY),
        **dict.fromkeys(("head_dim", "qk_head_dim"), nullable(whole(-(2**31)))),  # follow from other entries
        **dict.fromkeys(("output_router_logits", "seq_aux"), FLAG),
    }

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        mismatches = super().mismatches(arch)
        if 0 in arch.values(f"{MOE}.n_shared"):
            mismatches.append(Mismatch(f"{MOE}.n_shared", 0, (1,)))
        if 0 in arch.values(f"{ATTN}.rope_head_dim"):
            mismatches.append(Mismatch(f"{ATTN}.rope_head_dim", 0, (2,)))
        if arch.value(f"{ATTN}.bias") and arch.values(f"{ATTN}.q_latent_dim") == [None]:
            mismatches.append(Mismatch(f"{ATTN}.bias", True, (False,)))  # uncompressed queries have no bias there
        dense = [layer["moe"] == "none" for layer in arch.layers]
        if dense != sorted(dense, reverse=True):
            mismatches.append(
                Mismatch("model.layers.pattern", "a dense layer after a mixture", ("dense layers first",))
            )
        return mismatches

    def write(self, arch: Architecture) -> dict[str, Any]:
        config = super().write(arch)
        config["num_key_value_heads"] = config["num_attention_heads"]
        config[DENSE] = sum(layer["moe"] == "none" for layer in arch.layers)
        if config[DENSE] < len(arch.layers):
            n_shared = arch.value(f"{MOE}.n_shared")
            config |= {"n_shared_experts": n_shared, "n_routed_experts": arch.value(f"{MOE}.n_experts") - n_shared}
            config |= {ACTIVE: arch.value(f"{MOE}.n_active") - n_shared}
            groups = arch.value(f"{MOE}.n_groups")
            config |= {"n_group": groups, "topk_group": arch.value(f"{MOE}.n_active_groups") or groups}
        else:
            config |= {ACTIVE: 1}  # transformers requires it even if all layers are dense
        return config

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        n_heads, kv_heads = values["model.n_heads"], entries["num_key_value_heads"]
        if kv_heads not in (None, n_heads):
            raise refused("num_key_value_heads", kv_heads, f"num_attention_heads={n_heads}")
        if values[f"{ATTN}.rope_head_dim"] % 2:
            raise refused("qk_rope_head_dim", values[f"{ATTN}.rope_head_dim"], "an even number")
        if values[f"{ATTN}.bias"] and values[f"{ATTN}.q_latent_dim"] is None:
            raise refused("attention_bias", True, "false, or a q_lora_rank")
        n_shared, n_routed, active = (entries[name] for name in ("n_shared_experts", "n_routed_experts", ACTIVE))
        counts = {"n_shared": n_shared, "n_active": n_shared + active, "n_experts": n_shared + n_routed}
        counts |= {"n_groups": 1, "n_active_groups": None}
        if entries[DENSE] < values["model.n_layers"]:
            check_active(active, n_routed)
            counts |= self.groups(entries)
        return super().arrange(entries, values | {f"{MOE}.{name}": count for name, count in counts.items()})

    def groups(self, entries: Config) -> dict[str, Any]:
        """The settings of group-limited routing.

        Raises:
            UserError: the experts do not divide into the groups, or too few remain to choose from.
        """
        n_group, kept = entries["n_group"], entries["topk_group"]
        n_routed, active, best = entries["n_routed_experts"], entries[ACTIVE], self.best_of_group
        for name, value in (("n_group", n_group), ("topk_group", kept)):
            if value is None:
                raise refused(name, value, "a whole number: groups of experts, and groups to choose experts from")
        if n_routed % n_group or n_routed // n_group < best:
            raise refused(
                "n_group", n_group, f"a divisor of n_routed_experts={n_routed} with groups of at least {best}"
            )
        if kept > n_group or kept * (n_routed // n_group) < active:
            raise refused("topk_group", kept, f"at most n_group={n_group}, with at least {active} experts in total")
        return {} if kept == n_group else {"n_groups": n_group, "n_active_groups": kept}

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        layers = super().layers(entries, values)
        return [layer | {"moe": "none" if i < entries[DENSE] else self.moe} for i, layer in enumerate(layers)]

    def interleaved(self, config: Config) -> bool:
        """Whether rotary rows are stored as adjacent pairs instead of halves."""
        return True

    def attention(self, layer: dict[str, Any], name: str, hf_name: str, config: Config) -> list[Weight]:
        rotary, plain = layer[f"{ATTN}.rope_head_dim"], layer[f"{ATTN}.nope_head_dim"]
        interleaved = self.interleaved(config)
        queries = InterleavedLayout(plain, rotary) if interleaved else SameLayout()
        keys = InterleavedLayout(layer[f"{ATTN}.kv_latent_dim"], rotary) if interleaved else SameLayout()
        residual: list[tuple[str, str, Layout]] = [
            ("kv_down", "kv_a_proj_with_mqa", keys),
            ("out", "o_proj", SameLayout()),
        ]  # layers that read or write the residual stream; attention_bias gives all of them a bias
        weights = [
            Weight(f"{name}.kv_norm.weight", (f"{hf_name}.kv_a_layernorm.weight",)),
            Weight(f"{name}.kv_up.weight", (f"{hf_name}.kv_b_proj.weight",)),
        ]
        if layer[f"{ATTN}.q_latent_dim"] is None:
            weights.append(Weight(f"{name}.q.weight", (f"{hf_name}.q_proj.weight",), queries))
        else:
            residual.append(("q_down", "q_a_proj", SameLayout()))
            weights.append(Weight(f"{name}.q_norm.weight", (f"{hf_name}.q_a_layernorm.weight",)))
            weights.append(Weight(f"{name}.q_up.weight", (f"{hf_name}.q_b_proj.weight",), queries))
        for part in linear_parts(layer[f"{ATTN}.bias"]):
            weights += [Weight(f"{name}.{x}.{part}", (f"{hf_name}.{y}.{part}",), layout) for x, y, layout in residual]
        return weights

    def feed_forward(self, layer: dict[str, Any], name: str, hf_name: str) -> list[Weight]:
        if layer["moe"] == "none":
            return super().feed_forward(layer, name, hf_name)
        shared = layer[f"{MOE}.n_shared"] * layer[f"{MOE}.expert_d_ff"]
        return [
            *mixture_weights(layer, name, f"{hf_name}.mlp", PROJECTIONS),
            *self.balance(name, f"{hf_name}.mlp.gate"),
            *glu_weights(f"{name}.shared", f"{hf_name}.mlp.shared_experts", shared),
        ]

    def balance(self, name: str, hf_name: str) -> list[Weight]:
        """The router's weights besides its matrix."""
        return []

    def ignored(self, name: str, config: Config) -> bool:
        if super().ignored(name, config):
            return True
        number = re.match(r"model\.layers\.(\d+)\.", name)  # multi-token prediction follows the last layer
        return number is not None and int(number[1]) >= config["num_hidden_layers"]


class DeepseekV2(Deepseek):
    """DeepSeek-V2 (2024, arXiv 2405.04434): gates are softmax scores, not normalized."""

    title = "DeepSeek-V2"
    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    even_heads = True
    moe = "aux_loss"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = Deepseek.allowed | {
        "moe": ("aux_loss", "none"),
        f"{MOE}.router": ("softmax",),
        f"{MOE}.normalize": (False,),
    }
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (*Deepseek.interpreted, ConfigEntry("topk_method", TEXT, "greedy"))
    fixed: ClassVar[tuple[FixedEntry, ...]] = (
        *Deepseek.fixed,
        FixedEntry("scoring_func", "softmax"),
        FixedEntry("norm_topk_prob", False),
    )
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_loss"}

    def write(self, arch: Architecture) -> dict[str, Any]:
        config = super().write(arch)
        grouped = config.get("topk_group") != config.get("n_group")
        return config | {"topk_method": "group_limited_greedy" if grouped else "greedy"}

    def groups(self, entries: Config) -> dict[str, Any]:
        methods = ("greedy", "group_limited_greedy")
        if entries["topk_method"] not in methods:
            raise refused("topk_method", entries["topk_method"], " or ".join(methods))
        return {} if entries["topk_method"] == "greedy" else super().groups(entries)


class DeepseekV3(Deepseek):
    """DeepSeek-V3 (2024, arXiv 2412.19437): experts balanced without a loss, by a bias on their sigmoid scores."""

    title = "DeepSeek-V3"
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    moe = "aux_free"
    best_of_group = 2
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = Deepseek.allowed | {
        "moe": ("aux_free", "none"),
        f"{MOE}.router": ("sigmoid",),
    }
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        Deepseek.entries,
        mapped("intermediate_size", f"{FFN}.d_ff", 18432),
        mapped("moe_intermediate_size", f"{MOE}.expert_d_ff", 2048),
        mapped("routed_scaling_factor", f"{MOE}.routed_scale", 2.5, type=FLOAT),
        mapped("norm_topk_prob", f"{MOE}.normalize", True, type=FLAG),
    )
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = replaced(
        Deepseek.interpreted,
        ConfigEntry("num_key_value_heads", nullable(HEADS), 128),
        ConfigEntry("n_group", nullable(EXPERTS), 8),
        ConfigEntry("topk_group", nullable(EXPERTS), 4),
        ConfigEntry("n_shared_experts", EXPERTS, 1),
        ConfigEntry("n_routed_experts", EXPERTS, 256, also=("num_local_experts",)),
        ConfigEntry(ACTIVE, EXPERTS, 8),
        ConfigEntry(DENSE, whole(0), 3),
        ConfigEntry("rope_interleave", FLAG, True),
    )
    fixed: ClassVar[tuple[FixedEntry, ...]] = (
        *Deepseek.fixed,
        FixedEntry("scoring_func", "sigmoid"),
        FixedEntry("topk_method", "noaux_tc"),
    )
    harmless: ClassVar[dict[str, EntryType]] = Deepseek.harmless | {"num_mtp_layers": whole(0)}
    written: ClassVar[dict[str, Any]] = {"rope_interleave": True, "num_nextn_predict_layers": 0}
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_free"}

    def interleaved(self, config: Config) -> bool:
        return bool(config["rope_interleave"])

    def balance(self, name: str, hf_name: str) -> list[Weight]:
        return [Weight(f"{name}.bias_E", (f"{hf_name}.e_score_correction_bias",))]
