"""The families of DeepSeek: latent attention, and mixtures with shared experts behind the first dense layers."""

import re
from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.family import Config, Entry, Fact, Mismatch, Only, entry, refused, replaced
from tinyllm.interop.kinds import ANY, EXPERTS, FLAG, FLOAT, HEADS, TEXT, WIDTH, Kind, nullable, whole
from tinyllm.interop.layouts import Interleaved, Layout, Same, Weight
from tinyllm.interop.llama_like import RopeFamily, glu, parts
from tinyllm.interop.mixtures import ACTIVE, PROJECTIONS, check_active, mixture

DENSE = "first_k_dense_replace"


class Deepseek(RopeFamily):
    """What its families share.

    Attributes:
        moe: their option of the group.
        best_of_group: how many experts of a group, the best, decide whether it is chosen.
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
    entries: ClassVar[tuple[Entry, ...]] = (
        *RopeFamily.entries,
        entry("kv_lora_rank", f"{ATTN}.kv_latent_dim", 512),
        entry("q_lora_rank", f"{ATTN}.q_latent_dim", 1536, kind=nullable(WIDTH)),
        entry("qk_rope_head_dim", f"{ATTN}.rope_head_dim", 64),
        entry("qk_nope_head_dim", f"{ATTN}.nope_head_dim", 128),
        entry("v_head_dim", f"{ATTN}.v_head_dim", 128),
        entry("attention_bias", f"{ATTN}.bias", False, kind=FLAG),
        entry("intermediate_size", f"{FFN}.d_ff", 11008),
        entry("moe_intermediate_size", f"{MOE}.expert_d_ff", 1407),
        entry("routed_scaling_factor", f"{MOE}.routed_scale", 1.0, kind=FLOAT),
    )
    facts: ClassVar[tuple[Fact, ...]] = (
        *RopeFamily.facts,
        Fact("num_key_value_heads", nullable(HEADS), None),
        Fact("n_group", nullable(EXPERTS), None),
        Fact("topk_group", nullable(EXPERTS), None),
        Fact("n_shared_experts", EXPERTS, 2),
        Fact("n_routed_experts", EXPERTS, 64, also=("num_experts",)),
        Fact(ACTIVE, EXPERTS),
        Fact(DENSE, whole(0), 0),
    )
    only: ClassVar[tuple[Only, ...]] = (Only("moe_layer_freq", 1),)
    harmless: ClassVar[dict[str, Kind]] = RopeFamily.harmless | {
        **dict.fromkeys(("aux_loss_alpha", "ep_size"), ANY),
        **dict.fromkeys(("head_dim", "qk_head_dim"), nullable(whole(-(2**31)))),  # follow from other entries
        **dict.fromkeys(("output_router_logits", "seq_aux"), FLAG),
    }

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
        config[DENSE] = sum(layer["moe"] == "none" for layer in arch.layers)
        if config[DENSE] < len(arch.layers):
            n_shared = arch.value(f"{MOE}.n_shared")
            config |= {"n_shared_experts": n_shared, "n_routed_experts": arch.value(f"{MOE}.n_experts") - n_shared}
            config |= {ACTIVE: arch.value(f"{MOE}.n_active") - n_shared}
            groups = arch.value(f"{MOE}.n_groups")
            config |= {"n_group": groups, "topk_group": arch.value(f"{MOE}.n_active_groups") or groups}
        else:
            config |= {ACTIVE: 1}  # which transformers wants to know in any case
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
        """The groups that experts are chosen from.

        Raises:
            UserError: they do not come out even.
        """
        n_group, kept = entries["n_group"], entries["topk_group"]
        n_routed, active, best = entries["n_routed_experts"], entries[ACTIVE], self.best_of_group
        for name, value in (("n_group", n_group), ("topk_group", kept)):
            if value is None:
                raise refused(name, value, "how many groups of experts there are, and how many are chosen from")
        if n_routed % n_group or n_routed // n_group < best:
            raise refused(
                "n_group", n_group, f"what divides n_routed_experts={n_routed} into groups of at least {best}"
            )
        if kept > n_group or kept * (n_routed // n_group) < active:
            raise refused("topk_group", kept, f"at most n_group={n_group}, with at least {active} experts together")
        return {} if kept == n_group else {"n_groups": n_group, "n_active_groups": kept}

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        own = super().layers(entries, values)
        return [layer | {"moe": "none" if i < entries[DENSE] else self.moe} for i, layer in enumerate(own)]

    def interleaved(self, config: Config) -> bool:
        """Whether the rows of rotary parts are stored in neighbouring pairs."""
        return True

    def attention(self, layer: dict[str, Any], ours: str, theirs: str, config: Config) -> list[Weight]:
        rotary, plain = layer[f"{ATTN}.rope_head_dim"], layer[f"{ATTN}.nope_head_dim"]
        interleaved = self.interleaved(config)
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
            *self.balance(ours, f"{theirs}.mlp.gate"),
            *glu(f"{ours}.shared", f"{theirs}.mlp.shared_experts", shared),
        ]

    def balance(self, ours: str, theirs: str) -> list[Weight]:
        """What a router has beside its matrix."""
        return []

    def ignored(self, name: str, config: Config) -> bool:
        if super().ignored(name, config):
            return True
        number = re.match(r"model\.layers\.(\d+)\.", name)  # behind the last layer: prediction of several tokens
        return number is not None and int(number[1]) >= config["num_hidden_layers"]


class DeepseekV2(Deepseek):
    """DeepSeek-V2 (2024): gates are softmax scores, not normalised."""

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
    facts: ClassVar[tuple[Fact, ...]] = (*Deepseek.facts, Fact("topk_method", TEXT, "greedy"))
    only: ClassVar[tuple[Only, ...]] = (*Deepseek.only, Only("scoring_func", "softmax"), Only("norm_topk_prob", False))
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
    """DeepSeek-V3 (2024): experts balanced without a loss, by a bias on their sigmoid scores."""

    title = "DeepSeek-V3"
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    moe = "aux_free"
    best_of_group = 2
    allowed: ClassVar[dict[str, tuple[Any, ...]]] = Deepseek.allowed | {
        "moe": ("aux_free", "none"),
        f"{MOE}.router": ("sigmoid",),
    }
    entries: ClassVar[tuple[Entry, ...]] = replaced(
        Deepseek.entries,
        entry("intermediate_size", f"{FFN}.d_ff", 18432),
        entry("moe_intermediate_size", f"{MOE}.expert_d_ff", 2048),
        entry("routed_scaling_factor", f"{MOE}.routed_scale", 2.5, kind=FLOAT),
        entry("norm_topk_prob", f"{MOE}.normalize", True, kind=FLAG),
    )
    facts: ClassVar[tuple[Fact, ...]] = replaced(
        Deepseek.facts,
        Fact("num_key_value_heads", nullable(HEADS), 128),
        Fact("n_group", nullable(EXPERTS), 8),
        Fact("topk_group", nullable(EXPERTS), 4),
        Fact("n_shared_experts", EXPERTS, 1),
        Fact("n_routed_experts", EXPERTS, 256, also=("num_local_experts",)),
        Fact(ACTIVE, EXPERTS, 8),
        Fact(DENSE, whole(0), 3),
        Fact("rope_interleave", FLAG, True),
    )
    only: ClassVar[tuple[Only, ...]] = (
        *Deepseek.only,
        Only("scoring_func", "sigmoid"),
        Only("topk_method", "noaux_tc"),
    )
    harmless: ClassVar[dict[str, Kind]] = Deepseek.harmless | {"num_mtp_layers": whole(0)}
    written: ClassVar[dict[str, Any]] = {"rope_interleave": True, "num_nextn_predict_layers": 0}
    varying: ClassVar[dict[str, Any]] = {"moe": "aux_free"}

    def interleaved(self, config: Config) -> bool:
        return bool(config["rope_interleave"])

    def balance(self, ours: str, theirs: str) -> list[Weight]:
        return [Weight(f"{ours}.bias_E", (f"{theirs}.e_score_correction_bias",))]
