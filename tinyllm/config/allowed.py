"""Which class may stand where in a configuration: what an option file names for that very node, and nothing else.

A configuration can come out of a checkpoint that somebody else wrote. A list of packages whose classes may be named is
no protection: removing directories and starting processes are among what they hold. So a ``_target_`` is compared,
before anything is imported, with those that an option file names for the node it stands in: a file of ``conf/``, or
of the ``--config-dir`` of this command line, because the person who passes that directory has chosen it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyllm.config.paths import conf_dir
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json, read_text
from tinyllm.utils.yaml_files import parse_yaml

MARKS = ("_partial_", "_convert_", "_recursive_", "_args_")
"""What stands beside a ``_target_`` and says how it is called."""
TORCH = {"optimizer": "torch.optim."}
"""Where a class of torch may be named that no file names: its optimizers, which do nothing when they are made."""
KIND = re.compile(r"^model\.layers\.kinds\.[\w-]+(?=\.|$)")
"""A kind of layer: its block, composed like ``model.block``."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A class that an option file puts into a node of the configuration."""

    node: str
    target: str
    marks: str
    """The keys of ``MARKS`` with their values, as JSON."""


def walk_nodes(node: Any, path: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """(path, node) of every dict in a plain container that has a ``_target_``, outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, child in node.items():
            yield from walk_nodes(child, below(path, name))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from walk_nodes(child, f"{path}[{index}]")


def below(path: str, name: Any) -> str:
    """The path of a child. One whose name is no name, such as ``block.attn``, gets a path that no other node has."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        return f"{path}[{name!r}]"
    return f"{path}.{name}" if path else name


def marks_of(node: Mapping[Any, Any]) -> str:
    """How the class of a node is called, for comparison."""
    return json.dumps({name: node[name] for name in MARKS if name in node}, sort_keys=True, default=repr)


@cache
def shipped() -> dict[str, frozenset[Option]]:
    """The options of ``conf/`` by node."""
    found: dict[str, set[Option]] = {}
    for option in options_of(conf_dir()):
        found.setdefault(option.node, set()).add(option)
    return {node: frozenset(options) for node, options in found.items()}


def options_of(directory: Path) -> frozenset[Option]:
    """Every class that an option file below ``directory`` names, with its node.

    A file that cannot be read offers nothing; whoever chooses it is told.
    """
    found: set[Option] = set()
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.endswith(".yaml"):
                found.update(_options_in(Path(folder) / name, group=os.path.relpath(folder, directory)))
    return frozenset(found)


def _options_in(file: Path, *, group: str) -> Iterator[Option]:
    try:
        text = read_text(file)
        content = parse_yaml(text) if "_target_" in text else None
    except (ValueError, UserError):
        return
    for path, node in walk_nodes(content, package_in(text, group=group, name=file.stem)):
        yield Option(node=path, target=str(node["_target_"]), marks=marks_of(node))


def package_in(text: str, *, group: str, name: str) -> str:
    """The node that an option file fills, "" for the whole configuration: by its first line, else by its group."""
    header = re.match(r"\s*#\s*@package\s+(\S+)", text)
    default = "" if group == "." else group.replace(os.sep, ".")
    package = header[1].replace("_group_", default).replace("_name_", name) if header else default
    return "" if package == "_global_" else package.removeprefix("_global_.")


def check_class(node: Mapping[Any, Any], path: str, extra: frozenset[Option]) -> None:
    """Refuse a node whose class, or how it is called, no option file gives for that place.

    Args:
        node: a dict with a ``_target_``.
        path: where it stands in the configuration.
        extra: the options of the user's own directory.

    Raises:
        UserError: the class may not stand there.
    """
    target, place = node["_target_"], KIND.sub("model.block", path)
    options = shipped().get(place, frozenset()) | {option for option in extra if option.node == place}
    if not options:
        hint = "a value stands here, and no option file names a class for it"
        raise UserError("class not allowed", key=f"{path}._target_", value=target, hint=hint)
    named = sorted({option.target for option in options})
    of_torch = place in TORCH and isinstance(target, str) and target.startswith(TORCH[place])
    if target not in named and not of_torch:
        more = f" or {TORCH[place]}*" if place in TORCH else ""
        hint = f"{', '.join(named)}{more}; one of your own is named by an option file of your --config-dir"
        raise UserError("class not allowed", key=f"{path}._target_", value=target, hint=hint)
    if marks_of(node) not in {option.marks for option in options}:
        known = [parse_json(option.marks) for option in options]
        mark = next((name for name in MARKS if not any(one.get(name) == node.get(name) for one in known)), MARKS[0])
        hint = f"how the class is called is decided by its option file, e.g. {min(option.marks for option in options)}"
        raise UserError("not allowed here", key=f"{path}.{mark}", value=node.get(mark), hint=hint)


def check_classes(node: Any, path: str = "", extra: frozenset[Option] = frozenset()) -> None:
    """Refuse a plain container in which a class stands that no option file names for its place.

    Raises:
        UserError: there is one; the line names the key and the class.
    """
    for where, found in walk_nodes(node, path):
        check_class(found, where, extra)
