"""The options found in ``conf/``, and small models of any combination of them.

Options that compose to the same node, such as ffn=gelu and ffn=mlp, count once. Every combination of attention,
position, window, feed-forward layer and mixture is a test; those of the everyday run have every attention with every
position and window, and every pair of any two choices.
"""

from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

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
"""Positions that differ from rope_yarn only in frequencies; the everyday run tests rope_yarn for all of them."""
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
    """Names of the option files of a group, in ``conf/`` or another directory."""
    return sorted(path.stem for path in ((directory or conf_dir()) / group).glob("*.yaml"))


@cache
def distinct(group: str) -> list[str]:
    """The options of a group without aliases, which compose to the same node."""
    found: dict[str, str] = {}
    for name in options(group):
        found.setdefault(repr(part(group, name)), name)
    return list(found.values())


@cache
def part(group: str, name: str) -> Any:
    """The node that an option fills.

    Options of different groups are composed together, the first with the first and so on: a composition takes long, and
    none of them changes the node of another.
    """
    index = options(group).index(name)
    chosen = {other: options(other)[index % len(options(other))] for other in PARTS}
    return at(node(tuple(f"{other}={option}" for other, option in chosen.items())), PLACES[group])


@cache
def node(overrides: tuple[str, ...], config_dir: Path | None = None) -> dict[str, Any]:
    """The model node of a composition, as plain containers."""
    return plain(tinyllm.compose(*overrides, config_dir=config_dir).model)


@cache
def described(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The same node without a composition of its own where parts and keys of the model are all that is set."""
    names, keys = {}, {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in PARTS:
            names[key] = value
        elif key.startswith("model."):
            keys[key] = OverridesParser.create().parse_override(override).value()
        else:
            return node(overrides)
    content = deepcopy(assembled(node(()), **names))
    for key, value in keys.items():
        *path, last = key.split(".")[1:]
        place = at(content, path)
        if last not in place:
            return node(overrides)  # which says what is wrong
        place[last] = value
    return content


def at(content: dict[str, Any], path: Iterable[str]) -> Any:
    for key in path:
        content = content[key]
    return content


def assembled(base: dict[str, Any], **names: str) -> dict[str, Any]:
    """A model node with options replaced, as the command line would compose it."""
    block = dict(base["block"])
    outside = {}
    for group, name in names.items():
        if PLACES[group][0] == "block":
            block[group] = dict(part(group, name))
        else:
            outside[group] = part(group, name)
    return base | {"block": block} | outside


def small(*overrides: str, config_dir: Path | None = None, seed: int = 0, **changes: Any) -> Transformer:
    """A model of two layers of width 32, with weights large enough that every part matters."""
    allow = options_of(config_dir) if config_dir else frozenset()
    torch.manual_seed(seed)
    content = node(overrides, config_dir) if config_dir else described(overrides)
    built = build(content | SHAPE | changes, path="model", allow=allow)
    assert isinstance(built, Transformer)
    return built


def built(choice: Choice, *, seed: int = 0, **changes: Any) -> Transformer:
    """A model of the same size for a combination."""
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
    """A cached model of a combination; tests must not change its weights or mode."""
    return built(choice)


def combinations_of_all() -> list[Choice]:
    groups = (distinct("attn"), distinct("pos"), WINDOWS, distinct("ffn"), distinct("moe"), distinct("norm"))
    return [Choice(*names) for names in product(*groups)]


def everyday(choices: list[Choice]) -> set[Choice]:
    """Each attention × position × window once, with the rest chosen so that every pair occurs."""
    choices = without_similar(choices)
    missing = {pair for choice in choices for pair in pairs(choice)}
    rows: dict[tuple[Any, ...], list[Choice]] = {}
    for choice in choices:
        rows.setdefault(choice[:3], []).append(choice)
    chosen = set()
    for index, row in enumerate(rows.values()):
        first = 5 * index % len(row)  # vary which of equally good ones is chosen
        best = max(row[first:] + row[:first], key=lambda choice: len(pairs(choice) & missing))
        chosen.add(best)
        missing -= pairs(best)
    assert not missing, "every pair fits in"
    return chosen


def without_similar(choices: list[Choice]) -> list[Choice]:
    """The choices without ``SAME_ROTATION``."""
    return [choice for choice in choices if choice.pos not in SAME_ROTATION]


def pairs(choice: Choice) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """All pairs of options in a combination."""
    return set(combinations(choice._asdict().items(), 2))


def params(choices: Iterable[Choice], quick: Iterable[Choice]) -> list[Any]:
    """Test parameters; those not in ``quick`` are marked exhaustive."""
    quick = set(quick)
    return [pytest.param(one, id=str(one), marks=() if one in quick else pytest.mark.exhaustive) for one in choices]
