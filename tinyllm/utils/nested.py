"""Nested mappings addressed by dotted keys: ``a.b`` is the entry ``b`` of the mapping ``a``."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every leaf. A list is a leaf, and so is an empty mapping."""
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from flatten(child, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


def value_at(node: Any, path: str) -> Any:
    """The value of a dotted key; None if there is no such key. The empty key is the node itself."""
    for name in path.split(".") if path else ():
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node


def has_key(node: Any, path: str) -> bool:
    """Whether a dotted key exists; its value may be null."""
    parent_path, _, name = path.rpartition(".")
    parent = value_at(node, parent_path)
    return isinstance(parent, Mapping) and name in parent


def is_within(key: str, nodes: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``nodes`` or lies below one; an index ``layers[0]`` lies below ``layers``."""
    return any(key == node or key.startswith((f"{node}.", f"{node}[")) for node in nodes)
