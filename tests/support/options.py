"""Which options there are, read from disk, and small models of any combination of them.

Options that compose to the same node, such as ffn=gelu and ffn=mlp, count once. Every combination of attention,
position, window, feed-forward layer and mixture is a test; those of the everyday run have every attention with every
position and window, and every pair of any two choices.
"""

from collections.abc import Iterable
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import tinyllm
from tinyllm.config.build import build
from tinyllm.config.option_files import conf_dir
from tinyllm.config.targets import options_of
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import plain

PARTS = ("attn", "ffn", "moe", "pos", "norm")
PLACES = {
    "attn": ("block", "attn"),
    "ffn": ("block", "ffn"),
    "moe": ("block", "moe"),
    "pos": ("pos",),
    "norm": ("norm",),
}
WINDOWS = (0, 5)
SAME_ROTATION = ("rope_linear", "rope_ntk", "rope_llama3")
"""Positions that differ from rope_yarn in frequencies alone; every day that stands for them."""
CONTEXT = 12
VOCABULARY = 31
SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "max_seq_len": CONTEXT}
SHAPE |= {"init_std": 0.3, "vocab_size": VOCABULARY}


class Choice(NamedTuple):
    """A combination of options."""

    attn: str
    pos: str
    window: int
    ffn: str
    moe: str
    norm: str

    def __str__(self) -> str:
        return " ".join([self.attn, self.pos, f"window{self.window}", self.ffn, self.moe, self.norm])


def options(group: str, *, directory: Path | None = None) -> list[str]:
    """The names of the option files of a group in the shipped ``conf`` or another such directory."""
    return sorted(path.stem for path in ((directory or conf_dir()) / group).glob("*.yaml"))


@cache
def distinct(group: str) -> list[str]:
    """The options of a group without those that compose to the node of another one."""
    found: dict[str, str] = {}
    for name in options(group):
        found.setdefault(repr(at(node((f"{group}={name}",)), PLACES[group])), name)
    return list(found.values())


@cache
def node(overrides: tuple[str, ...], config_dir: Path | None = None) -> dict[str, Any]:
    """The model node of a composition, as plain containers."""
    return plain(tinyllm.compose(*overrides, config_dir=config_dir).model)


def at(content: dict[str, Any], path: Iterable[str]) -> Any:
    for key in path:
        content = content[key]
    return content


def assembled(base: dict[str, Any], **names: str) -> dict[str, Any]:
    """A model node with the nodes of other options in it, as the command line would compose it."""
    block = dict(base["block"])
    outside = {}
    for group, name in names.items():
        part = at(node((f"{group}={name}",)), PLACES[group])
        if PLACES[group][0] == "block":
            block[group] = dict(part)
        else:
            outside[group] = part
    return base | {"block": block} | outside


def small(*overrides: str, config_dir: Path | None = None, seed: int = 0, **changes: Any) -> Transformer:
    """Two layers of width 32 with weights large enough that every part matters."""
    allow = options_of(config_dir) if config_dir else frozenset()
    torch.manual_seed(seed)
    built = build(node(("model=nano", *overrides), config_dir) | SHAPE | changes, path="model", allow=allow)
    assert isinstance(built, Transformer)
    return built


def built(choice: Choice, *, seed: int = 0, **changes: Any) -> Transformer:
    """The model of a combination, of the same size."""
    names = choice._asdict()
    window = names.pop("window")
    content = assembled(node(()), **names)
    content["block"]["attn"]["window"] = window
    torch.manual_seed(seed)
    model = build(content | SHAPE | changes, path="model")
    assert isinstance(model, Transformer)
    return model


@cache
def shared(choice: Choice) -> Transformer:
    """The model of a combination; tests leave its weights and its mode as they are."""
    return built(choice)


def combinations_of_all() -> list[Choice]:
    groups = (distinct("attn"), distinct("pos"), WINDOWS, distinct("ffn"), distinct("moe"), distinct("norm"))
    return [Choice(*names) for names in product(*groups)]


def everyday(choices: list[Choice]) -> set[Choice]:
    """Each attention with each position and window once, the rest such that all pairs are there."""
    choices = of_every_day(choices)
    missing = {pair for choice in choices for pair in pairs(choice)}
    rows: dict[tuple[Any, ...], list[Choice]] = {}
    for choice in choices:
        rows.setdefault(choice[:3], []).append(choice)
    chosen = set()
    for index, row in enumerate(rows.values()):
        first = 5 * index % len(row)  # where several bring as much, not always the same ones
        best = max(row[first:] + row[:first], key=lambda choice: len(pairs(choice) & missing))
        chosen.add(best)
        missing -= pairs(best)
    assert not missing, "every pair fits in"
    return chosen


def of_every_day(choices: list[Choice]) -> list[Choice]:
    """Those whose parts do something of their own."""
    return [choice for choice in choices if choice.pos not in SAME_ROTATION]


def pairs(choice: Choice) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The options of a combination, two and two."""
    return set(combinations(choice._asdict().items(), 2))


def params(choices: Iterable[Choice], quick: Iterable[Choice]) -> list[Any]:
    """Parameters of a test; those that are not quick are exhaustive."""
    quick = set(quick)
    return [pytest.param(one, id=str(one), marks=() if one in quick else pytest.mark.exhaustive) for one in choices]
