"""Model sizes that the matching of arms may change, and the values to try for each."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.config.no_effect import RULES
from tinyllm.utils.nested import has_key, value_at

LARGEST = 1 << 20
"""Largest hidden or latent size to try."""
SMALLEST = 8
"""Smallest hidden size of an expert and smallest latent size to try."""
STEPS = (8, 4, 2, 1)
"""Spacing of the values to try. Multiples of 8 suit the hardware; finer steps are tried only where these fail."""

Node = dict[str, Any]
"""The ``model`` node of a configuration, as plain containers."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """Values to try for one key, in ascending order."""

    key: str
    values: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class MatchableSize:
    """A size that the matching may change, and the keys that hold it."""

    keys: tuple[str, ...]
    levels: Callable[[Node], list[Level]]
    """The values to try for a model, coarsest first."""


def _d_ff(node: Node) -> list[Level]:
    """From half the model's width: a narrower layer would hardly be a feed-forward layer.

    A gated layer rounds the width it derives from model.d_ff, so finer steps are tried on the layer's own key as well.
    """
    least = min(int(node["d_ff"]), int(node["d_model"]) // 2)
    fine = [_multiples(key, step, least) for step in STEPS[1:] for key in ("model.d_ff", OWN_D_FF)]
    return [_multiples("model.d_ff", STEPS[0], least), *fine]


def _expert_d_ff(node: Node) -> list[Level]:
    return [_multiples("model.block.moe.expert_d_ff", step, SMALLEST) for step in STEPS]


def _kv_latent_dim(node: Node) -> list[Level]:
    return [_multiples("model.block.attn.kv_latent_dim", step, SMALLEST) for step in STEPS]


def _n_kv_heads(node: Node) -> list[Level]:
    heads = int(node["n_heads"])
    return [Level(key="model.n_kv_heads", values=[n for n in range(1, heads + 1) if heads % n == 0])]


def _n_layers(node: Node) -> list[Level]:
    return [Level(key="model.n_layers", values=range(1, 4 * int(node["n_layers"]) + 1))]


def _d_model(node: Node) -> list[Level]:
    """Multiples of n_heads; first those with a head size that suits the hardware and rotary positions."""
    heads, limit = int(node["n_heads"]), 8 * int(node["d_model"])
    steps = dict.fromkeys((math.lcm(8, 4 * heads), 4 * heads, 2 * heads, heads))
    return [Level(key="model.d_model", values=range(step, limit + 1, step)) for step in steps]


def _multiples(key: str, step: int, least: int) -> Level:
    return Level(key=key, values=range(max(1, -(-least // step)) * step, LARGEST + 1, step))


OWN_D_FF = "model.block.ffn.d_ff"
SIZES: dict[str, MatchableSize] = {
    "d_ff": MatchableSize(keys=("model.d_ff", OWN_D_FF), levels=_d_ff),
    "expert_d_ff": MatchableSize(keys=("model.block.moe.expert_d_ff",), levels=_expert_d_ff),
    "n_layers": MatchableSize(keys=("model.n_layers",), levels=_n_layers),
    "d_model": MatchableSize(keys=("model.d_model",), levels=_d_model),
    "kv_latent_dim": MatchableSize(keys=("model.block.attn.kv_latent_dim",), levels=_kv_latent_dim),
    "n_kv_heads": MatchableSize(keys=("model.n_kv_heads",), levels=_n_kv_heads),
}
"""The sizes by their names in ``match_by``."""


def levels_of(size: MatchableSize, node: Node, fixed: Collection[str]) -> list[Level]:
    """The values to try for a model; none if it lacks the size, or if the arm itself sets it.

    With layers of several kinds, the keys of ``model.block`` are left alone: each kind has a block of its own.
    """
    if {*size.keys, *(dead for key in size.keys for dead in replaced_by(key))} & set(fixed):
        return []
    several_kinds = "kinds" in node["layers"]
    return [
        level
        for level in size.levels(node)
        if has_key({"model": node}, level.key) and not (several_kinds and level.key.startswith("model.block."))
    ]


def replaced_by(key: str) -> list[str]:
    """The keys that lose their effect once ``key`` has a number."""
    return [dead for rule in RULES if rule.key == key and rule.when(1) for dead in rule.disables]


def value_of(node: Node, key: str) -> Any:
    """The value of a key; None if there is no such key."""
    return value_at({"model": node}, key)


def with_value(node: Node, key: str, value: int) -> Node:
    """A copy of the node with a different value for a key."""
    return _with_value(node, key.split(".")[1:], value)


def _with_value(node: Node, path: list[str], value: int) -> Node:
    name, *rest = path
    return node | {name: _with_value(node[name], rest, value) if rest else value}
