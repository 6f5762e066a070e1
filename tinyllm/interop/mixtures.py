"""The families with mixtures of experts."""

import re
from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.family import Config, Entry, Mismatch, Only, refused
from tinyllm.interop.layouts import Experts, Interleaved, Layout, Rows, Same, Weight
from tinyllm.interop.rope import HeadsFamily, RopeFamily, glu, parts

SOFTMAX_MIXTURE: dict[str, tuple[Any, ...]] = {
    "moe": ("aux_loss",),
    f"{MOE}.n_shared": (0,),
    f"{MOE}.router": ("softmax",),
    f"{MOE}.routed_scale": (1.0,),
}


class Mixtral(HeadsFamily):
    """Mixtral 8x7B (Jiang et al. 2024): a mixture of experts in every layer."""

    title = "Mixtral"
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    theta = 1000000.0
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = (
        HeadsFamily.allowed | SOFTMAX_MIXTURE | {f"{ATTN}.qk_norm": (False,)}
    )
    entries: ClassVar[tuple[Entry, ...]] = (
        *(one for one in HeadsFamily.entries if one.theirs != "rms_norm_eps"),
        Entry("rms_norm_eps", "model.norm.eps", 1e-5),
        Entry("sliding_window", f"{ATTN}.window", None, null=0),
        Entry("num_local_experts", f"{MOE}.n_experts", 8, also=("num_experts",)),
        Entry("num_experts_per_tok", f"{MOE}.n_active", 2),
        Entry("intermediate_size", f"{MOE}.expert_d_ff"),
    )

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        return super().mismatches(arch) + several_active(arch)

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        if values[f"{MOE}.n_active"] < 2:  # its gate would be 1 there and is the raw score here
            raise refused("num_experts_per_tok", values[f"{MOE}.n_active"], "at least 2")
        return super().arrange(config, values)

    def feed_forward(self, layer: dict[str, Any], ours: str, theirs: str) -> list[Weight]:
        return mixture(layer, ours, f"{theirs}.block_sparse_moe", ("w1", "w3", "w2"))


def several_active(arch: Architecture) -> list[Mismatch]:
    """What is wrong with a single active expert."""
    key = f"{MOE}.n_active"
    return [Mismatch(key, one, (2,)) for one in arch.values(key) if one < 2]


def mixture(layer: dict[str, Any], ours: str, theirs: str, names: tuple[str, str, str]) -> list[Weight]:
    """The router and the routed experts; ``names`` are those of gate, up and down."""
    n_routed, d_ff = layer[f"{MOE}.n_experts"] - layer[f"{MOE}.n_shared"], layer[f"{MOE}.expert_d_ff"]
    gate, up, down = names
    experts = [f"{theirs}.experts.{i}" for i in range(n_routed)]
    return [
        Weight(f"{ours}.router.weight", (f"{theirs}.gate.weight",)),
        Weight(
            f"{ours}.experts.gate_up.weight",
            tuple(f"{expert}.{name}.weight" for expert in experts for name in (gate, up)),
            Experts(n_routed, Rows((d_ff, d_ff))),
        ),
        Weight(
            f"{ours}.experts.down.weight",
            tuple(f"{expert}.{down}.weight" for expert in experts),
            Experts(n_routed, Same()),
        ),
    ]


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Qwen3Moe(HeadsFamily):
    """The mixtures of Qwen3; some layers may be dense."""

    title = "Qwen3-MoE"
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = (
        HeadsFamily.allowed
        | SOFTMAX_MIXTURE
        | {"moe": ("aux_loss", "none"), f"{ATTN}.qk_norm": (True,), f"{ATTN}.bias": (False, True)}
    )
    entries: ClassVar[tuple[Entry, ...]] = (
        *HeadsFamily.entries,
        Entry("intermediate_size", f"{FFN}.d_ff", 6144),
        Entry("attention_bias", f"{ATTN}.bias", False),
        Entry("num_experts", f"{MOE}.n_experts", 128, also=("num_local_experts",)),
        Entry("num_experts_per_tok", f"{MOE}.n_active", 8),
        Entry("moe_intermediate_size", f"{MOE}.expert_d_ff", 768),
    )
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_loss", f"{ATTN}.window": 0}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        windows = arch.values(f"{ATTN}.window")
        several = [Mismatch(f"{ATTN}.window", one, (windows[0],)) for one in windows[1:]]
        return super().mismatches(arch) + several

    def write(self, arch: Architecture) -> dict[str, Any]:
        window = arch.value(f"{ATTN}.window")
        active = arch.values(f"{MOE}.n_active")
        return super().write(arch) | {
            "use_sliding_window": bool(window),
            "sliding_window": window or None,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, layer in enumerate(arch.layers) if layer["moe"] == "none"],
            "norm_topk_prob": not active or active[0] > 1,
        }

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        check_normalised(config, values[f"{MOE}.n_active"], default=False)
        return super().arrange(config, values)

    def differing(self, config: Config, layer: int, values: dict[str, Any]) -> dict[str, Any]:
        dense = layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % config.get("decoder_sparse_step", 1)
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
        return {"moe": "none" if dense else "aux_loss", f"{ATTN}.window": window or 0}

    def feed_forward(self, layer: dict[str, Any], ours: str, theirs: str) -> list[Weight]:
        if layer["moe"] == "none":
            return super().feed_forward(layer, ours, theirs)
        return mixture(layer, ours, f"{theirs}.mlp", PROJECTIONS)


def check_normalised(config: Config, active: int, *, default: bool) -> None:
    """Gates are normalised here if several experts are active, and are the raw score of a single one."""
    normalised = config.get("norm_topk_prob", default)
    if normalised != (active > 1):
        what = "normalised" if active > 1 else "not normalised"
        raise refused("norm_topk_prob", normalised, f"{active > 1}, with {active} active the gates are {what}".lower())


class DeepseekV3(RopeFamily):
    """DeepSeek-V3 (2024): latent attention, and experts balanced without a loss behind the first dense layers."""

    title = "DeepSeek-V3"
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = RopeFamily.allowed | {
        "attn": ("mla",),
        "moe": ("aux_free", "none"),
        f"{ATTN}.window": (0,),
        f"{ATTN}.bias": (False, True),
        f"{ATTN}.latent_norm_eps": (1e-6,),
        f"{FFN}.bias": (False,),
        f"{MOE}.router": ("sigmoid",),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        *RopeFamily.entries,
        Entry("kv_lora_rank", f"{ATTN}.kv_latent_dim", 512),
        Entry("q_lora_rank", f"{ATTN}.q_latent_dim", 1536),
        Entry("qk_rope_head_dim", f"{ATTN}.rope_head_dim", 64),
        Entry("qk_nope_head_dim", f"{ATTN}.nope_head_dim", 128),
        Entry("v_head_dim", f"{ATTN}.v_head_dim", 128),
        Entry("attention_bias", f"{ATTN}.bias", False),
        Entry("intermediate_size", f"{FFN}.d_ff", 18432),
        Entry("moe_intermediate_size", f"{MOE}.expert_d_ff", 2048),
        Entry("routed_scaling_factor", f"{MOE}.routed_scale", 2.5),
    )
    only = (
        Only("scoring_func", "sigmoid", "sigmoid"),
        Only("topk_method", "noaux_tc", "noaux_tc"),
        Only("moe_layer_freq", 1, 1),
    )
    written: ClassVar[dict[str, Any]] = {
        "n_group": 1,
        "topk_group": 1,
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
    }
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_free"}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        found = super().mismatches(arch)
        found += [Mismatch(f"{MOE}.n_shared", 0, (1,)) for one in arch.values(f"{MOE}.n_shared") if not one]
        found += [Mismatch(f"{ATTN}.rope_head_dim", 0, (2,)) for one in arch.values(f"{ATTN}.rope_head_dim") if not one]
        if arch.value(f"{ATTN}.bias") and arch.values(f"{ATTN}.q_latent_dim") == [None]:
            found.append(Mismatch(f"{ATTN}.bias", True, (False,)))  # its queries have none if they come from x
        dense = [layer["moe"] == "none" for layer in arch.layers]
        if dense != sorted(dense, reverse=True):
            found.append(Mismatch("model.layers.pattern", "a dense layer behind a mixture", ("dense layers first",)))
        return found

    def write(self, arch: Architecture) -> dict[str, Any]:
        config = super().write(arch)
        config["num_key_value_heads"] = config["num_attention_heads"]
        config["first_k_dense_replace"] = sum(layer["moe"] == "none" for layer in arch.layers)
        if config["first_k_dense_replace"] < len(arch.layers):
            n_shared = arch.value(f"{MOE}.n_shared")
            active = arch.value(f"{MOE}.n_active") - n_shared
            config |= {"n_shared_experts": n_shared, "n_routed_experts": arch.value(f"{MOE}.n_experts") - n_shared}
            config |= {"num_experts_per_tok": active, "norm_topk_prob": active > 1}
        return config

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        if config.get("first_k_dense_replace", 3) < values["model.n_layers"]:
            groups, chosen = config.get("n_group", 8), config.get("topk_group", 4)
            if groups != chosen:
                raise refused("topk_group", chosen, f"n_group={groups}: experts are not chosen in groups here")
        if values[f"{ATTN}.bias"] and values[f"{ATTN}.q_latent_dim"] is None:
            raise refused("attention_bias", True, "false, or a q_lora_rank")
        n_shared, active = config.get("n_shared_experts", 1), config.get("num_experts_per_tok", 8)
        check_normalised(config, active, default=True)
        counts = {"n_shared": n_shared, "n_active": n_shared + active}
        counts["n_experts"] = n_shared + config.get("n_routed_experts", 256)
        return super().arrange(config, values | {f"{MOE}.{name}": count for name, count in counts.items()})

    def differing(self, config: Config, layer: int, values: dict[str, Any]) -> dict[str, Any]:
        return {"moe": "none" if layer < config.get("first_k_dense_replace", 3) else "aux_free"}

    def attention(self, layer: dict[str, Any], ours: str, theirs: str, config: Config) -> list[Weight]:
        rotary, plain = layer[f"{ATTN}.rope_head_dim"], layer[f"{ATTN}.nope_head_dim"]
        interleaved = config.get("rope_interleave", True)
        queries = Interleaved(plain, rotary) if interleaved else Same()
        keys = Interleaved(layer[f"{ATTN}.kv_latent_dim"], rotary) if interleaved else Same()
        into: list[tuple[str, str, Layout]] = [
            ("kv_down", "kv_a_proj_with_mqa", keys),
            ("out", "o_proj", Same()),
        ]  # from and to the residual stream
        found = [
            Weight(f"{ours}.kv_norm.weight", (f"{theirs}.kv_a_layernorm.weight",)),
            Weight(f"{ours}.kv_up.weight", (f"{theirs}.kv_b_proj.weight",)),
        ]
        if layer[f"{ATTN}.q_latent_dim"] is None:
            found.append(Weight(f"{ours}.q.weight", (f"{theirs}.q_proj.weight",), queries))
        else:
            into.append(("q_down", "q_a_proj", Same()))
            found.append(Weight(f"{ours}.q_norm.weight", (f"{theirs}.q_a_layernorm.weight",)))
            found.append(Weight(f"{ours}.q_up.weight", (f"{theirs}.q_b_proj.weight",), queries))
        for part in parts(layer[f"{ATTN}.bias"]):
            found += [Weight(f"{ours}.{one}.{part}", (f"{theirs}.{other}.{part}",), how) for one, other, how in into]
        return found

    def feed_forward(self, layer: dict[str, Any], ours: str, theirs: str) -> list[Weight]:
        if layer["moe"] == "none":
            return super().feed_forward(layer, ours, theirs)
        shared = layer[f"{MOE}.n_shared"] * layer[f"{MOE}.expert_d_ff"]
        return [
            *mixture(layer, ours, f"{theirs}.mlp", PROJECTIONS),
            Weight(f"{ours}.bias_E", (f"{theirs}.mlp.gate.e_score_correction_bias",)),
            *glu(f"{ours}.shared", f"{theirs}.mlp.shared_experts", shared),
        ]

    def ignored(self, name: str, config: Config) -> bool:
        if super().ignored(name, config):
            return True
        number = re.match(r"model\.layers\.(\d+)\.", name)  # behind the last layer: prediction of several tokens
        return number is not None and int(number[1]) >= config["num_hidden_layers"]
