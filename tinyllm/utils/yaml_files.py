"""Reading yaml, by whomever it was written: plain containers, numbers and texts, in bounded time and memory."""

import re
from pathlib import Path
from typing import Any

import yaml

from tinyllm.errors import UserError
from tinyllm.utils.files import DEEPEST, read_text

LARGEST = 8 << 20
"""Bytes of a file; the configuration of a run has a few thousand."""
MOST = 200_000
"""Nodes, those that an alias repeats counted at each place."""
LONGEST = 2 * LARGEST
"""Characters in all texts, counted likewise: whoever writes, compares or hashes the content goes through all."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # several times as fast, where the library has it


class _Loader(_Base):
    """YAML 1.1's plain types, read as Hydra reads them: ``1e-3`` is a number, a date is text, no key is there twice."""

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
    """The content of a file as plain containers, interpolations as they stand.

    Args:
        file: the file.
        of: what it must hold, e.g. ``dict``; an empty file is an empty one.
        what: what the line says where it cannot be read.

    Raises:
        UserError: there is no such file, it is not yaml (see :func:`parse_yaml`), or it holds something else.
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
    """What a yaml text says.

    Raises:
        ValueError: it is not yaml, has a tag, is nested too deep, or repeats too much by aliases.
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
    """The nodes of a yaml text, which know their place in it; None: it is empty.

    Raises:
        ValueError: see :func:`parse_yaml`.
    """
    check_bounds(text)
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_bounds(text: str) -> None:
    """Refuse a text whose nodes would be too many or too deep, without making them.

    Aliases are cheap to write and dear to expand: nine lists of ten aliases each are a thousand million entries.

    Raises:
        ValueError: it is such a text, or not yaml.
    """
    sizes: dict[str, tuple[int, int]] = {}
    total, length, open_nodes = 0, 0, list[tuple[str | None, int, int]]()
    try:
        for event in yaml.parse(text, Loader=_Base):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                if anchor not in sizes:
                    raise ValueError(f"the alias {anchor} is inside of what it repeats, or has no anchor")
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
                raise ValueError(f"more than {MOST:,} nodes, those that aliases repeat included")
            if length > LONGEST:
                raise ValueError(f"texts of more than {LONGEST:,} characters, those that aliases repeat included")
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
