"""Option files of one's own, looked at when they are chosen and before Hydra reads them, so that an error names one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tinyllm.errors import UserError
from tinyllm.utils.files import read_text
from tinyllm.utils.yaml_files import compose_yaml, read_yaml

OTHER_NUMBER = re.compile(r"[-+]?0[0-9][0-9_]*|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""What YAML 1.1 takes for a number to the base 8 or 60: 010 is 8 and 1:30 is 90."""


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
