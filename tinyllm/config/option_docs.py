"""Read the shipped yaml files with their comments, from which ``--help`` and the option reference are made.

The first comment of a file describes the option; the comment beside or above a key describes the key. This module does
not import Hydra, which is slow.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from tinyllm.config.option_files import conf_dir
from tinyllm.utils.files import read_text
from tinyllm.utils.yaml_files import compose_yaml

_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
OVERRIDE = "override "
"""Prefix of an entry in a defaults list that changes an earlier choice."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a yaml file: its path below the file's node, its default as written, and its comment."""

    path: str
    default: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class File:
    """A yaml file."""

    name: str
    meaning: str
    package: str = ""
    """The node that the file fills, from its ``# @package`` line."""
    keys: dict[str, Key] = field(default_factory=dict)
    choices: dict[str, str | None] = field(default_factory=dict)
    """Group and chosen option of each entry in the defaults list; several options as ``[a,b]``."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A folder of options."""

    name: str
    package: str
    """The node that all options fill; "" if they fill different nodes."""
    default: str | None
    """The default option as typed; several as ``[a,b]``."""
    options: list[File]

    @property
    def chosen(self) -> list[File]:
        """The default options."""
        names = (self.default or "").strip("[]").split(",")
        return [option for option in self.options if option.name in names]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The keys and groups of a program."""

    name: str
    meaning: str
    keys: dict[str, Key]
    groups: list[Group]


def programs() -> list[str]:
    """The programs with a root file, those that users need first at the front."""
    known = ("train", "generate", "chat", "evaluate", "prepare", "describe")
    found = {path.stem for path in conf_dir().glob("*.yaml")}
    return [name for name in known if name in found] + sorted(found - set(known))


def read_program(name: str, *, more: Sequence[Path] = ()) -> Program:
    """Read the root file of a program and its groups.

    Args:
        more: folders of option files besides ``conf/``, whose own options win over theirs.
    """
    root = read_file(conf_dir() / f"{name}.yaml")
    groups = []
    for group, default in root.choices.items():
        files = {path.name: path for place in (*more, conf_dir()) for path in (place / group).glob("*.yaml")}
        options = [read_file(files[file]) for file in sorted(files)]
        packages = [option.package for option in options]
        package = packages[0] if packages and len(set(packages)) == 1 else ""
        groups.append(Group(name=group, package=package, default=default, options=options))
    groups.sort(key=lambda group: group.name != "model")  # the size of the model first, then its parts
    return Program(name=name, meaning=root.meaning, keys=root.keys, groups=groups)


def read_file(path: Path) -> File:
    """Read a file together with the files of its folder that its defaults list names.

    Raises:
        ValueError: the file is not a mapping.
    """
    text = read_text(path)
    root = compose_yaml(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: a configuration file must be a mapping")
    package, meaning = _header(text)
    keys: dict[str, Key] = {}
    choices: dict[str, str | None] = {}
    defaults = list(_defaults(root))
    for group, option, is_override in defaults:
        file = path.parent / f"{option}.yaml"
        if group is not None and not is_override:
            choices[group] = option
        elif group is None and file.is_file():  # not _self_, and not a schema registered with Hydra
            below = read_file(file)
            keys |= below.keys
            choices |= below.choices
    for key in _leaves(root, text, ""):
        known = keys.get(key.path)
        keys[key.path] = replace(key, meaning=known.meaning) if known and not key.meaning else key
    choices |= {group: option for group, option, is_override in defaults if is_override and group in choices}
    return File(name=path.stem, meaning=meaning, package=package, keys=keys, choices=choices)


def _header(text: str) -> tuple[str, str]:
    """The package and the text of a file's first comment, without its example commands."""
    package, sentences = "", []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment = line.lstrip("#").strip()
        if comment.startswith("@package"):
            package = comment.split()[1].replace("_global_", "")
        elif not comment.startswith("python -m "):
            sentences.append(comment)
    return package, " ".join(sentences)


def _defaults(root: yaml.MappingNode) -> Iterator[tuple[str | None, str | None, bool]]:
    """(group, option, is an override) of each entry in the defaults list; the group of a plain file is None."""
    entries: list[yaml.Node] = next((value.value for key, value in root.value if key.value == "defaults"), [])
    for entry in entries:
        if isinstance(entry, yaml.ScalarNode):
            yield None, entry.value, False
        else:
            [(group, option)] = entry.value
            name = group.value.removeprefix(OVERRIDE)
            yield _group_name(name), _as_typed(option), name != group.value


def _group_name(text: str) -> str:
    return text.lstrip("/").partition("@")[0]


def _as_typed(option: yaml.Node) -> str | None:
    """The option chosen by a defaults-list entry, as a user would type it; None for null."""
    if isinstance(option, yaml.SequenceNode):
        return f"[{','.join(node.value for node in option.value)}]"
    return None if option.value == "null" else str(option.value)


def _leaves(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[Key]:
    """Every key below a node that holds a value."""
    for key, value in node.value:
        if key.value in _HYDRA_KEYS or (not prefix and key.value in ("defaults", "hydra")):
            continue
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, text, f"{path}.")
        else:
            default = text[value.start_mark.index : value.end_mark.index].strip()
            default = "[…]" if "\n" in default else default  # a list over several lines
            yield Key(path=path, default=default, meaning=_comment(text, key, value))


def _comment(text: str, key: yaml.Node, value: yaml.Node) -> str:
    """The comment beside a value, else the comment lines right above its key."""
    lines = text.splitlines()
    behind = re.match(r"\s*#\s*(.*)", text[value.end_mark.index :].split("\n", 1)[0])
    if behind:
        return behind[1].strip()
    above: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        stripped = line.strip()
        if not stripped.startswith("#") or stripped.startswith("# @package"):
            break
        above.insert(0, stripped.lstrip("#").strip())
    first_key = len(above) == key.start_mark.line and not key.start_mark.column
    return "" if first_key else " ".join(above)  # the comment at the top belongs to the file
