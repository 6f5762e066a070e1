"""Option files: where they lie, the node that each fills, the groups they make up, and what they may not contain."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tinyllm.errors import UserError
from tinyllm.utils.files import read_text
from tinyllm.utils.yaml_files import compose_yaml, read_yaml

LONGEST_OPTION = 200
"""Characters of an option's name; file systems take 255 bytes."""
OTHER_NUMBER = re.compile(r"[-+]?0[0-9][0-9_]*|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""What YAML 1.1 takes for a number to the base 8 or 60: 010 is 8 and 1:30 is 90."""


def conf_dir() -> Path:
    """The absolute directory of the shipped yaml files."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"tinyllm's conf directory is missing beside {package}")


def package_in(text: str, *, group: str, name: str) -> str:
    """The node that an option file fills, "" for the whole configuration: by its first line, else by its group."""
    header = re.match(r"\s*#\s*@package\s+(\S+)", text)
    default = "" if group == "." else group.replace(os.sep, ".")
    package = header[1].replace("_group_", default).replace("_name_", name) if header else default
    return "" if package == "_global_" else package.removeprefix("_global_.")


def package_of(file: Path) -> str:
    """The node that an option file fills, "" for the whole configuration."""
    return package_in(read_text(file), group=file.parent.name, name=file.stem)


def nodes_of(group: str) -> list[str]:
    """The node that the shipped options of a group fill; none if they set any key, or if there is no such group."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return [package for package in map(package_of, files[:1]) if package]


def side_by_side(places: Iterable[Path]) -> bool:
    """Whether the options in the folders of a group each fill a node of their own, so that several can be chosen."""
    nodes = [package_of(file) for place in places for file in place.glob("*.yaml")]
    return len(nodes) > 1 and len(set(nodes)) == len(nodes)


def groups() -> list[str]:
    """The names of all groups of options; Hydra's own are its flags' business."""
    return sorted(place.name for place in conf_dir().iterdir() if place.is_dir() and place.name != "hydra")


def options_with(node: str, name: str) -> list[str]:
    """The shipped choices, as ``group=option``, whose file sets ``name`` in ``node``."""
    return [
        f"{file.parent.name}={file.stem}"
        for file in sorted(conf_dir().glob("*/*.yaml"))
        if node and package_of(file) == node and name in read_yaml(file, of=dict)
    ]


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


def check_file(file: Path, place: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Refuse an option file that says something else than it seems to, or nothing; and those that its defaults name.

    Args:
        file: the option file.
        place: the directory of option files that it lies in.
        seen: files that are being looked at.

    Raises:
        UserError: it cannot be read or is no mapping, or a number in it is read to another base.
    """
    what = "unreadable configuration file"
    content = read_yaml(file, of=dict, what=what)
    for node in _scalars(compose_yaml(read_text(file)), set()):
        if node.style is None and OTHER_NUMBER.fullmatch(node.value):
            base = 60 if ":" in node.value else 8
            hint = f"YAML takes {node.value} for a number to the base {base}; leave out the zeros, or quote a text"
            raise UserError("a number that is another one", file=f"{file}:{node.start_mark.line + 1}", hint=hint)
    for group, option in _defaults(content, file.parent, place):
        other = group / f"{option}.yaml"
        if other.is_file() and other not in seen:
            check_file(other, place, seen | {file})


def _scalars(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """The scalars below a node, those that aliases repeat once."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode) and id(node) not in seen:
        seen.add(id(node))
        for child in node.value:
            for one in child if isinstance(child, tuple) else [child]:
                yield from _scalars(one, seen)


def _defaults(content: dict[Any, Any], folder: Path, place: Path) -> Iterator[tuple[Path, str]]:
    """Folder and name of each option file that a defaults list names."""
    entries = content.get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, str):
            yield (place if entry.startswith("/") else folder), entry.strip("/")
        for key, options in entry.items() if isinstance(entry, dict) else ():
            group = re.sub(r"^(optional |override )*", "", str(key)).partition("@")[0]
            for option in options if isinstance(options, list) else [options]:
                yield (place if group.startswith("/") else folder) / group.strip("/"), str(option)
