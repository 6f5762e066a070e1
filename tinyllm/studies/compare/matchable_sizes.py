"""What the matching of arms may change: sizes of a model, with the values that each may take."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.config.no_effect import RULES
from tinyllm.utils.nested import value_at

LARGEST = 1 << 20
"""Of a hidden or latent size."""
SMALLEST = 8
"""Of an expert's hidden size and of a latent one."""
STEPS = (8, 4, 2, 1)
"""Between the values of a size that are tried: the next ones only where these do not suffice."""

Node = dict[str, Any]
"""The node ``model`` of a configuration, as plain containers."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """Values for one key, in ascending order."""

    key: str
    values: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class MatchableSize:
    """A size that may be changed, under the keys that stand for it."""

    keys: tuple[str, ...]
    levels: Callable[[Node], list[Level]]
    """What to try, the coarsest first."""


def _d_ff(node: Node) -> list[Level]:
    """Down to half the width: less is hardly a feed-forward layer.

    A gated unit rounds what it takes of model.d_ff, so finer steps are taken on the layer's own key as well.
    """
    least = min(int(node["d_ff"]), int(node["d_model"]) // 2)
    fine = [_sizes(key, step, least) for step in STEPS[1:] for key in ("model.d_ff", OWN_D_FF)]
    return [_sizes("model.d_ff", STEPS[0], least), *fine]


def _expert_d_ff(node: Node) -> list[Level]:
    return [_sizes("model.block.moe.expert_d_ff", step, SMALLEST) for step in STEPS]


def _kv_latent_dim(node: Node) -> list[Level]:
    return [_sizes("model.block.attn.kv_latent_dim", step, SMALLEST) for step in STEPS]


def _n_kv_heads(node: Node) -> list[Level]:
    heads = int(node["n_heads"])
    return [Level(key="model.n_kv_heads", values=[n for n in range(1, heads + 1) if heads % n == 0])]


def _n_layers(node: Node) -> list[Level]:
    return [Level(key="model.n_layers", values=range(1, 4 * int(node["n_layers"]) + 1))]


def _d_model(node: Node) -> list[Level]:
    """Multiples of the heads, first those whose halves rotary positions can turn."""
    heads, limit = int(node["n_heads"]), 8 * int(node["d_model"])
    steps = dict.fromkeys((math.lcm(8, 4 * heads), 4 * heads, 2 * heads, heads))
    return [Level(key="model.d_model", values=range(step, limit + 1, step)) for step in steps]


def _sizes(key: str, step: int, least: int) -> Level:
    return Level(key=key, values=range(max(1, -(-least // step)) * step, LARGEST + 1, step))


OWN_D_FF = "model.block.ffn.d_ff"
KNOBS: dict[str, MatchableSize] = {
    "d_ff": MatchableSize(keys=("model.d_ff", OWN_D_FF), levels=_d_ff),
    "expert_d_ff": MatchableSize(keys=("model.block.moe.expert_d_ff",), levels=_expert_d_ff),
    "n_layers": MatchableSize(keys=("model.n_layers",), levels=_n_layers),
    "d_model": MatchableSize(keys=("model.d_model",), levels=_d_model),
    "kv_latent_dim": MatchableSize(keys=("model.block.attn.kv_latent_dim",), levels=_kv_latent_dim),
    "n_kv_heads": MatchableSize(keys=("model.n_kv_heads",), levels=_n_kv_heads),
}
"""By the names that ``match_by`` takes."""


def levels_of(knob: MatchableSize, node: Node, fixed: Collection[str]) -> list[Level]:
    """What may be tried for a model; nothing where the model lacks the key or the arm itself says how large it is.

    Where layers differ, the keys of the block are left alone: each kind of layer has a block of its own.
    """
    if {*knob.keys, *(dead for key in knob.keys for dead in replaced_by(key))} & set(fixed):
        return []
    differ = "kinds" in node["layers"]
    return [
        level
        for level in knob.levels(node)
        if has(node, level.key) and not (differ and level.key.startswith("model.block."))
    ]


def replaced_by(key: str) -> list[str]:
    """The keys that have no effect any more once ``key`` has a number."""
    return [dead for rule in RULES if rule.by == key and rule.when(1) for dead in rule.keys]


def has(node: Node, key: str) -> bool:
    """Whether a key stands in the node."""
    parent, _, name = key.rpartition(".")
    return name in (value_of(node, parent) or ())


def value_of(node: Node, key: str) -> Any:
    """The value of a key; None where there is none."""
    return value_at({"model": node}, key)


def with_value(node: Node, key: str, value: int) -> Node:
    """A copy of the node in which a key has another value."""
    return _with(node, key.split(".")[1:], value)


def _with(node: Node, path: list[str], value: int) -> Node:
    name, *rest = path
    return node | {name: _with(node[name], rest, value) if rest else value}
