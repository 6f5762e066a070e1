"""What was probably meant: near names, and the same name in another place."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyllm.config.elsewhere import COMMANDS, meant_by
from tinyllm.config.paths import conf_dir
from tinyllm.errors import UserError
from tinyllm.utils.nested import flatten
from tinyllm.utils.yaml_files import read_yaml

CLOSE = 0.7
"""How alike names must be for one to be suggested for another: gqa for gq, not mqa for mla."""
LONGEST_OPTION = 200
"""Characters of an option's name; file systems take 255 bytes."""
SHOWN = 8
"""Names that an error line lists at most."""


def near(name: str, known: Iterable[str]) -> list[str]:
    """Those of the ``known`` names that are like ``name``, the nearest first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=CLOSE)


def unknown_key(
    path: str,
    value: object,
    known: Iterable[str],
    *,
    owner: str,
    root: Mapping[str, Any],
    unknown: str | None = None,
) -> UserError:
    """The error for a key that nobody reads.

    Args:
        path: the key.
        value: what it was to be.
        known: the keys that stand where it should.
        owner: who has them.
        root: the whole configuration; a key of the same name elsewhere is suggested.
        unknown: the first part of ``path`` that is not there; None: all of it.
    """
    prefix, _, name = (unknown or path).rpartition(".")
    known = sorted(known)
    having = options_with(prefix, name)
    elsewhere = "" if name != path else meant_by(name)  # no other tool writes its names with dots
    elsewhere = meant_by(name, str(value)) if elsewhere.endswith("…") else elsewhere
    here = {one.partition("=")[0].partition(".")[0] for one in elsewhere.split()}
    same = [key for key in setting_keys(root) if key.rpartition(".")[2] == path.rpartition(".")[2]]
    same = [key for key in same if key.endswith(f".{path}")] or same
    meant = same or [f"{prefix}.{one}" if prefix else one for one in near(name, known)]
    if elsewhere and (here <= root.keys() | set(groups()) or name in COMMANDS):
        hint = elsewhere if name in COMMANDS else f"did you mean {elsewhere}?"
    elif having:
        hint = f"choose {' or '.join(having)}, which {'has' if len(having) == 1 else 'have'} it"
    elif meant:
        hint = f"did you mean {' or '.join(meant[:3])}?"
    else:
        hint = f"{owner} takes {listed(known)}"
    return UserError("unknown key", key=path, value=value, hint=hint)


def side_by_side(places: Iterable[Path]) -> bool:
    """Whether the options in the folders of a group each fill a node of their own, so that several can be chosen."""
    nodes = [package_of(file) for place in places for file in place.glob("*.yaml")]
    return len(nodes) > 1 and len(set(nodes)) == len(nodes)


def package_of(file: Path) -> str:
    """The node that an option file fills, by its first line; "" where it says none."""
    found = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    return found[1] if found else ""


def groups() -> list[str]:
    """The names of all groups of options; Hydra's own are its flags' business."""
    return sorted(place.name for place in conf_dir().iterdir() if place.is_dir() and place.name != "hydra")


def options_with(node: str, name: str) -> list[str]:
    """The shipped choices, as ``group=option``, whose file sets ``name`` in ``node``."""
    found = []
    for file in sorted(conf_dir().glob("*/*.yaml")):
        package = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
        if not (node and package and package[1] == node):
            continue
        content = read_yaml(file)
        if isinstance(content, dict) and name in content:
            found.append(f"{file.parent.name}={file.stem}")
    return found


def listed(names: Iterable[str]) -> str:
    """The names in a row; when they are many, the way to see all."""
    names = list(names)
    if not names:
        return "no keys"
    return ", ".join(names) if len(names) <= SHOWN else f"{', '.join(names[:SHOWN])} … (--cfg job shows all)"


def setting_keys(node: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of all settings, without ``_target_`` and its like."""
    for key, value in flatten(node, path):
        if value != {} and "._" not in f".{key}":
            yield key


def is_option(group: str, name: Any, places: Iterable[Path]) -> bool:
    """Whether a value names an option of a group; a path to a file elsewhere is none.

    A plain name passes whether or not there is such an option: composing tells which there are.
    """
    text = str(name)
    if len(text) > LONGEST_OPTION:
        return False
    if re.fullmatch(r"[\w-]+", text):
        return True
    inside = all(re.fullmatch(r"[\w-][\w.-]*", part) for part in text.split("/"))
    return inside and any((place / group / f"{text}.yaml").is_file() for place in places)
