"""What Llama and the families that came of it share."""

from typing import Any, ClassVar

from tinyllm.interop.architecture import ATTN, FFN, Architecture, heads_option
from tinyllm.interop.family import COMMON, GATES, Config, Entry, Family, refused
from tinyllm.interop.layouts import Rows, Weight


class RopeFamily(Family):
    """Rotary positions and RMSNorm: Llama and what came of it.

    Attributes:
        theta: the base where config.json has none.
    """

    theta: ClassVar[float] = 10000.0

    allowed: ClassVar[dict[str, tuple[Any, ...]]] = COMMON | {
        "pos": ("rope",),
        "norm": ("rmsnorm",),
        "ffn": ("glu",),
        "moe": ("none",),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        Entry("vocab_size", "model.vocab_size"),
        Entry("hidden_size", "model.d_model"),
        Entry("num_hidden_layers", "model.n_layers"),
        Entry("num_attention_heads", "model.n_heads"),
        Entry("max_position_embeddings", "model.max_seq_len"),
        Entry("rms_norm_eps", "model.norm.eps", 1e-6),
        Entry("tie_word_embeddings", "model.tie_embeddings", False),
        Entry("hidden_act", f"{FFN}.gate", "silu", names=GATES),
    )

    def write(self, arch: Architecture) -> dict[str, Any]:
        base = arch.value("model.pos.base")
        rope = {"rope_parameters": {"rope_theta": base, "rope_type": "default"}, "rope_theta": base}
        return super().write(arch) | rope

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        return super().arrange(config, values | {"model.pos.base": self.rope_base(config)})

    def rope_base(self, config: Config) -> float:
        """The base of the rotary positions; transformers 5 writes ``rope_parameters``, older ones two entries."""
        name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        rope = config.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise refused(f"{name}.rope_type", kind, "default")
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1.0):
            raise refused("partial_rotary_factor", partial, "1.0")
        if any(isinstance(value, dict) for value in rope.values()):
            raise refused(name, "one per kind of layer", "one for all layers")
        return float(rope.get("rope_theta") or config.get("rope_theta") or self.theta)

    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        found = [
            Weight("embedding.weight", ("model.embed_tokens.weight",)),
            Weight("norm.weight", ("model.norm.weight",)),
        ]
        if not arch.value("model.tie_embeddings"):
            found.append(Weight("head.weight", ("lm_head.weight",)))
        for i, layer in enumerate(arch.layers):
            ours, theirs = f"blocks.{i}", f"model.layers.{i}"
            found.append(Weight(f"{ours}.norm1.weight", (f"{theirs}.input_layernorm.weight",)))
            found.append(Weight(f"{ours}.norm2.weight", (f"{theirs}.post_attention_layernorm.weight",)))
            found += self.attention(layer, f"{ours}.attn", f"{theirs}.self_attn", config)
            found += self.feed_forward(layer, f"{ours}.ffn", theirs)
        return found

    def attention(self, layer: dict[str, Any], ours: str, theirs: str, config: Config) -> list[Weight]:
        """The weights of one attention layer."""
        raise TypeError(f"{type(self).__name__} is no family by itself")

    def feed_forward(self, layer: dict[str, Any], ours: str, theirs: str) -> list[Weight]:
        """The weights of one feed-forward layer; ``theirs`` is the name of the whole layer."""
        return glu(ours, f"{theirs}.mlp", layer[f"{FFN}.d_ff"], bias=layer[f"{FFN}.bias"])


class HeadsFamily(RopeFamily):
    """Those with keys and values for some of the heads."""

    allowed: ClassVar[dict[str, tuple[Any, ...]]] = RopeFamily.allowed | {
        "attn": ("mha", "gqa", "mqa"),
        f"{ATTN}.bias": (False,),
        f"{FFN}.bias": (False,),
    }
    entries: ClassVar[tuple[Entry, ...]] = (
        *RopeFamily.entries,
        Entry("num_key_value_heads", "model.n_kv_heads", None),
        Entry("head_dim", f"{ATTN}.head_dim", None),
    )

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        n_heads = values["model.n_heads"]
        n_kv_heads = values["model.n_kv_heads"] or n_heads
        head_dim = values[f"{ATTN}.head_dim"] or values["model.d_model"] // n_heads
        derived = {"model.n_kv_heads": n_kv_heads, f"{ATTN}.head_dim": head_dim}
        return super().arrange(config, values | derived | {"attn": heads_option(n_heads, n_kv_heads)})

    def attention(self, layer: dict[str, Any], ours: str, theirs: str, config: Config) -> list[Weight]:
        dim, heads, kv_heads = layer[f"{ATTN}.head_dim"], layer["model.n_heads"], layer["model.n_kv_heads"]
        rows = Rows((heads * dim, kv_heads * dim, kv_heads * dim))
        found = []
        for part in parts(layer[f"{ATTN}.bias"]):
            found.append(Weight(f"{ours}.qkv.{part}", tuple(f"{theirs}.{x}_proj.{part}" for x in "qkv"), rows))
            found.append(Weight(f"{ours}.out.{part}", (f"{theirs}.o_proj.{part}",)))
        if layer[f"{ATTN}.qk_norm"]:
            found += [Weight(f"{ours}.{x}_norm.weight", (f"{theirs}.{x}_norm.weight",)) for x in "qk"]
        return found


def glu(ours: str, theirs: str, d_ff: int, *, bias: bool = False) -> list[Weight]:
    """The weights of a gated linear unit."""
    found = []
    for part in parts(bias):
        names = (f"{theirs}.gate_proj.{part}", f"{theirs}.up_proj.{part}")
        found.append(Weight(f"{ours}.gate_up.{part}", names, Rows((d_ff, d_ff))))
        found.append(Weight(f"{ours}.down.{part}", (f"{theirs}.down_proj.{part}",)))
    return found


def parts(bias: bool) -> tuple[str, ...]:
    """The tensors of a linear layer."""
    return ("weight", "bias") if bias else ("weight",)
