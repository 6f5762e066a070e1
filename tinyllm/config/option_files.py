"""Option files: where they are, which node each fills, which groups they form, and what they must not contain."""

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
"""Most characters in an option's name. File systems allow 255 bytes."""
OTHER_BASE = re.compile(r"[-+]?0[0-9][0-9_]*|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Numbers that YAML 1.1 reads in base 8 or 60: 010 is 8 and 1:30 is 90."""


def conf_dir() -> Path:
    """The absolute path of ``conf/``: beside the package in a checkout, inside it in a wheel.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"the conf directory of tinyllm is missing beside {package}")


def package_in(text: str, *, group: str, name: str) -> str:
    """The node that an option file fills, from its ``# @package`` line, else its group; "": the whole configuration."""
    header = re.match(r"\s*#\s*@package\s+(\S+)", text)
    default = "" if group == "." else group.replace(os.sep, ".")
    package = header[1].replace("_group_", default).replace("_name_", name) if header else default
    return "" if package == "_global_" else package.removeprefix("_global_.")


def package_of(file: Path) -> str:
    """The node that an option file fills; "": the whole configuration."""
    return package_in(read_text(file), group=file.parent.name, name=file.stem)


def nodes_of(group: str) -> list[str]:
    """The node that the built-in options of a group fill; empty for groups that fill no node of their own."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return [package for package in map(package_of, files[:1]) if package]


def side_by_side(places: Iterable[Path]) -> bool:
    """Whether each option of a group fills a different node, so that several can be chosen together.

    Args:
        places: the folders of the group.
    """
    nodes = [package_of(file) for place in places for file in place.glob("*.yaml")]
    return len(nodes) > 1 and len(set(nodes)) == len(nodes)


def groups() -> list[str]:
    """The names of all groups, without Hydra's own."""
    return sorted(place.name for place in conf_dir().iterdir() if place.is_dir() and place.name != "hydra")


def options_with(node: str, name: str) -> list[str]:
    """The built-in choices, as ``group=option``, whose file sets ``name`` in ``node``."""
    return [
        f"{file.parent.name}={file.stem}"
        for file in sorted(conf_dir().glob("*/*.yaml"))
        if node and package_of(file) == node and name in read_yaml(file, of=dict)
    ]


def is_option(group: str, name: Any, places: Iterable[Path]) -> bool:
    """Whether a value can name an option of a group; a path to a file elsewhere cannot.

    A plain name passes whether or not the option exists: Hydra's error lists those that do.
    """
    text = str(name)
    if len(text) > LONGEST_OPTION:
        return False
    if re.fullmatch(r"[\w-]+", text):
        return True
    inside = all(re.fullmatch(r"[\w-][\w.-]*", part) for part in text.split("/"))
    return inside and any((place / group / f"{text}.yaml").is_file() for place in places)


def check_file(file: Path, place: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Check a user's option file, and those that its defaults list names, before Hydra reads them.

    Args:
        file: the option file.
        place: the ``--config-dir`` that contains it.
        seen: files that are already being checked.

    Raises:
        UserError: it cannot be read, is not a mapping, or holds a number that YAML reads in a different base.
    """
    what = "unreadable configuration file"
    content = read_yaml(file, of=dict, what=what)
    for node in _scalars(compose_yaml(read_text(file)), set()):
        if node.style is None and OTHER_BASE.fullmatch(node.value):
            base, remedy = (60, "write it in base 10") if ":" in node.value else (8, "remove the leading zeros")
            hint = f"YAML reads {node.value} in base {base}; {remedy}, or quote it if it is text"
            raise UserError("ambiguous number", file=f"{file}:{node.start_mark.line + 1}", hint=hint)
    for group, option in _defaults(content, file.parent, place):
        other = group / f"{option}.yaml"
        if other.is_file() and other not in seen:
            check_file(other, place, seen | {file})


def _scalars(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """The scalars below a node; a node that aliases repeat is visited once."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.CollectionNode) and id(node) not in seen:
        seen.add(id(node))
        for child in node.value:
            for part in child if isinstance(child, tuple) else [child]:
                yield from _scalars(part, seen)


def _defaults(content: dict[Any, Any], folder: Path, place: Path) -> Iterator[tuple[Path, str]]:
    """The folder and name of each option file in a defaults list."""
    entries = content.get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, str):
            yield (place if entry.startswith("/") else folder), entry.strip("/")
        for key, options in entry.items() if isinstance(entry, dict) else ():
            group = re.sub(r"^(optional |override )*", "", str(key)).partition("@")[0]
            for option in options if isinstance(options, list) else [options]:
                yield (place if group.startswith("/") else folder) / group.strip("/"), str(option)
