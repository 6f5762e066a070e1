"""Reads yaml files safely, even untrusted ones: plain data only, in bounded time and memory."""

import re
from pathlib import Path
from typing import Any

import yaml

from tinyllm.errors import UserError
from tinyllm.utils.files import DEEPEST, read_text

LARGEST = 8 << 20
"""Bytes in a file; the configuration of a run has a few thousand."""
MOST = 200_000
"""Nodes in a file, with aliases expanded."""
LONGEST = 2 * LARGEST
"""Characters in all scalars, with aliases expanded, as writing or hashing the content expands them."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # several times faster, if PyYAML was built with libyaml


class _Loader(_Base):
    """Plain YAML 1.1 types, read as Hydra does: ``1e-3`` is a number, a date is text, duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping", node.start_mark, f"duplicate key {key.value}", key.start_mark
                    )
                keys.add((key.tag, key.value))
        return dict(super().construct_mapping(node, deep=deep))


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "value")
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in _Base.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(file: Path, *, of: type = object, what: str = "unreadable configuration file") -> Any:
    """The content of a yaml file as plain containers; interpolations are not resolved.

    Args:
        file: the file.
        of: the type of the content, e.g. ``dict``; an empty file gives an empty ``dict`` or ``list``.
        what: the beginning of the error message.

    Raises:
        UserError: the file is missing, is not yaml (see :func:`parse_yaml`), or holds a different type.
    """
    text = read_text(file, what=what, largest=LARGEST)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(what, file=file, hint=str(error)) from error
    if content is None and of in (dict, list):
        return of()
    if not isinstance(content, of):
        raise UserError(what, file=file, hint=f"it must hold {_NAMES.get(of, of.__name__)}")
    return content


_NAMES: dict[type, str] = {dict: "a mapping", list: "a list"}


def parse_yaml(text: str) -> Any:
    """Parse yaml into plain containers.

    Raises:
        ValueError: not yaml, has tags, is nested too deeply, or is too large with aliases expanded.
    """
    check_bounds(text)
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def compose_yaml(text: str) -> yaml.Node | None:
    """Parse yaml into nodes, which know their line and column; None for an empty string.

    Raises:
        ValueError: see :func:`parse_yaml`.
    """
    check_bounds(text)
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_bounds(text: str) -> None:
    """Refuse yaml with too many or too deeply nested nodes, without building them.

    Aliases make a small file huge: nine lists of ten aliases each expand to a billion entries ("billion laughs").

    Raises:
        ValueError: too large, nested too deeply, or not yaml.
    """
    sizes: dict[str, tuple[int, int]] = {}
    total, length, open_nodes = 0, 0, list[tuple[str | None, int, int]]()
    try:
        for event in yaml.parse(text, Loader=_Base):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                if anchor not in sizes:
                    raise ValueError(f"the alias {anchor} repeats itself, or has no anchor")
                total, length = total + sizes[anchor][0], length + sizes[anchor][1]
            elif isinstance(event, yaml.ScalarEvent):
                total, length = total + 1, length + len(event.value)
                if anchor is not None:
                    sizes[anchor] = 1, len(event.value)
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((anchor, total, length))
                sizes.pop(anchor or "", None)
                total += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, nodes_before, length_before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = total - nodes_before, length - length_before
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST} levels")
            if total > MOST:
                raise ValueError(f"more than {MOST:,} nodes with aliases expanded")
            if length > LONGEST:
                raise ValueError(f"more than {LONGEST:,} characters with aliases expanded")
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
