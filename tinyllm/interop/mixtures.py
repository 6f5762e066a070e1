"""Families with mixtures of experts: Mixtral and Qwen3-MoE."""

from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.entry_types import EXPERTS, FLAG, FLOAT, HEADS, SHARE, EntryType, listed, nullable, whole
from tinyllm.interop.family import Config, ConfigEntry, MappedEntry, mapped, refused, replaced
from tinyllm.interop.layouts import ExpertsLayout, RowsLayout, SameLayout, Weight
from tinyllm.interop.llama_like import HeadsFamily, check_layer_types

SOFTMAX_MIXTURE: dict[str, tuple[Any, ...]] = {
    "moe": ("aux_loss",),
    f"{MOE}.n_shared": (0,),
    f"{MOE}.router": ("softmax",),
    f"{MOE}.routed_scale": (1.0,),
    f"{MOE}.n_groups": (1,),
    f"{MOE}.n_active_groups": (None,),
}
BALANCE: dict[str, EntryType] = {
    "output_router_logits": FLAG,
    "router_aux_loss_coef": nullable(SHARE),
    "router_jitter_noise": SHARE,
}
"""Entries of load-balancing losses, which only training uses."""
ACTIVE = "num_experts_per_tok"


class Mixtral(HeadsFamily):
    """Mixtral 8x7B (Jiang et al. 2024): a mixture of experts in every layer."""

    title = "Mixtral"
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    theta = 1000000.0
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = (
        HeadsFamily.allowed | SOFTMAX_MIXTURE | {f"{ATTN}.qk_norm": (False,), f"{MOE}.normalize": (True,)}
    )
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        HeadsFamily.entries,
        mapped("rms_norm_eps", "model.norm.eps", 1e-5, type=FLOAT),
        mapped("num_key_value_heads", "model.n_kv_heads", 8, type=nullable(HEADS)),
        mapped("sliding_window", f"{ATTN}.window", None, type=nullable(whole()), null=0),
        mapped("num_local_experts", f"{MOE}.n_experts", 8, type=EXPERTS, also=("num_experts",)),
        mapped(ACTIVE, f"{MOE}.n_active", 2, type=EXPERTS),
        mapped("intermediate_size", f"{MOE}.expert_d_ff"),
    )
    harmless: ClassVar[dict[str, EntryType]] = HeadsFamily.harmless | BALANCE

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        check_active(values[f"{MOE}.n_active"], values[f"{MOE}.n_experts"])
        return super().arrange(entries, values)

    def feed_forward(self, layer: dict[str, Any], name: str, hf_name: str) -> list[Weight]:
        return mixture_weights(layer, name, f"{hf_name}.block_sparse_moe", ("w1", "w3", "w2"))


def check_active(active: int, n_experts: int) -> None:
    """Refuse more active experts than routed ones."""
    if active > n_experts:
        raise refused(ACTIVE, active, f"at most the {n_experts} experts")


def mixture_weights(layer: dict[str, Any], name: str, hf_name: str, names: tuple[str, str, str]) -> list[Weight]:
    """The weights of the router and the routed experts; ``names`` are the gate, up and down projections."""
    n_routed, d_ff = layer[f"{MOE}.n_experts"] - layer[f"{MOE}.n_shared"], layer[f"{MOE}.expert_d_ff"]
    gate, up, down = names
    experts = [f"{hf_name}.experts.{i}" for i in range(n_routed)]
    return [
        Weight(f"{name}.router.weight", (f"{hf_name}.gate.weight",)),
        Weight(
            f"{name}.experts.gate_up.weight",
            tuple(f"{expert}.{name}.weight" for expert in experts for name in (gate, up)),
            ExpertsLayout(n_routed, RowsLayout((d_ff, d_ff))),
        ),
        Weight(
            f"{name}.experts.down.weight",
            tuple(f"{expert}.{down}.weight" for expert in experts),
            ExpertsLayout(n_routed, SameLayout()),
        ),
    ]


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Qwen3Moe(HeadsFamily):
    """Qwen3-MoE (Yang et al. 2025): Qwen3 with mixtures of experts; some layers may be dense."""

    title = "Qwen3-MoE"
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = (
        HeadsFamily.allowed
        | SOFTMAX_MIXTURE
        | {"moe": ("aux_loss", "none"), f"{ATTN}.qk_norm": (True,), f"{ATTN}.bias": (False, True)}
    )
    entries: ClassVar[tuple[MappedEntry, ...]] = replaced(
        HeadsFamily.entries,
        mapped("num_key_value_heads", "model.n_kv_heads", 4, type=HEADS),
        mapped("intermediate_size", f"{FFN}.d_ff", 6144),
        mapped("attention_bias", f"{ATTN}.bias", False, type=FLAG),
        mapped("num_experts", f"{MOE}.n_experts", 128, type=EXPERTS, also=("num_local_experts",)),
        mapped(ACTIVE, f"{MOE}.n_active", 8, type=EXPERTS),
        mapped("moe_intermediate_size", f"{MOE}.expert_d_ff", 768),
        mapped("norm_topk_prob", f"{MOE}.normalize", False, type=FLAG),
    )
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = (
        *HeadsFamily.interpreted,
        ConfigEntry("use_sliding_window", FLAG, False),
        ConfigEntry("sliding_window", nullable(whole()), 4096),
        ConfigEntry("mlp_only_layers", nullable(listed(whole(0))), None),
        ConfigEntry("decoder_sparse_step", whole(), 1),
    )
    harmless: ClassVar[dict[str, EntryType]] = HeadsFamily.harmless | BALANCE | {"max_window_layers": whole(0)}
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_loss"}

    def write(self, arch: Architecture) -> dict[str, Any]:
        window = arch.value(f"{ATTN}.window")
        return super().write(arch) | {
            "use_sliding_window": bool(window),
            "sliding_window": window or None,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, layer in enumerate(arch.layers) if layer["moe"] == "none"],
        }

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        check_active(values[f"{MOE}.n_active"], values[f"{MOE}.n_experts"])
        window = entries["sliding_window"] if entries["use_sliding_window"] else None
        return super().arrange(entries, values | {f"{ATTN}.window": window or 0})

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        check_layer_types(entries, values)
        dense, step = entries["mlp_only_layers"] or (), entries["decoder_sparse_step"]
        sparse = [i not in dense and not (i + 1) % step for i in range(values["model.n_layers"])]
        return [{"moe": "aux_loss" if is_sparse else "none"} for is_sparse in sparse]

    def feed_forward(self, layer: dict[str, Any], name: str, hf_name: str) -> list[Weight]:
        if layer["moe"] == "none":
            return super().feed_forward(layer, name, hf_name)
        return mixture_weights(layer, name, f"{hf_name}.mlp", PROJECTIONS)
