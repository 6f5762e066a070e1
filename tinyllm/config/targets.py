"""The classes that a configuration names by ``_target_``: which are allowed where, and what their constructors take.

A configuration may come from a checkpoint that someone else wrote. A list of trusted packages would not protect: they
hold functions that remove directories and start processes. So before anything is imported, a ``_target_`` is compared
with those that an option file names for the same node. Option files are those of ``conf/`` and of the ``--config-dir``
of this command line, which the user has chosen.
"""

import collections.abc
import importlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyllm.config.option_files import conf_dir, package_in
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json, read_text
from tinyllm.utils.yaml_files import parse_yaml

HYDRA_CALL_KEYS = ("_partial_", "_convert_", "_recursive_", "_args_")
"""Keys beside a ``_target_`` that say how Hydra calls it."""
TORCH = {"optimizer": "torch.optim."}
"""Nodes that may name a PyTorch class without an option file. Constructing an optimizer has no side effects."""
LAYER_KIND_PATH = re.compile(r"^model\.layers\.kinds\.[\w-]+(?=\.|$)")
"""The block of a kind of layer, which is composed like ``model.block``."""
SOURCE_PATH = re.compile(r"^dataset\.sources\.[\w-]+(?=\.|$)")
"""A source of a mixture, which is composed like ``dataset``."""
SEQUENCES = (list, tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A class that an option file names for a node of the configuration."""

    node: str
    target: str
    call_flags: str
    """The keys of ``HYDRA_CALL_KEYS`` with their values, as JSON."""


def walk_nodes(node: Any, path: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """(path, node) of every dict with a ``_target_`` in a plain container, outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, child in node.items():
            yield from walk_nodes(child, child_path(path, name))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from walk_nodes(child, f"{path}[{index}]")


def child_path(path: str, name: Any) -> str:
    """The path of a child. A name such as ``block.attn``, not an identifier, is quoted, so it cannot collide with a
    dotted path."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        return f"{path}[{name!r}]"
    return f"{path}.{name}" if path else name


def call_flags_of(node: Mapping[Any, Any]) -> str:
    """The keys of ``HYDRA_CALL_KEYS`` in a node, in a form that can be compared."""
    return json.dumps({name: node[name] for name in HYDRA_CALL_KEYS if name in node}, sort_keys=True, default=repr)


@cache
def builtin_options() -> dict[str, frozenset[Option]]:
    """The options of ``conf/`` by node."""
    by_node: dict[str, set[Option]] = {}
    for option in options_of(conf_dir()):
        by_node.setdefault(option.node, set()).add(option)
    return {node: frozenset(options) for node, options in by_node.items()}


def options_of(directory: Path) -> frozenset[Option]:
    """Every class that an option file below ``directory`` names, with its node.

    Unreadable files are skipped; choosing one is an error elsewhere.
    """
    options: set[Option] = set()
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.endswith(".yaml"):
                options.update(_options_in(Path(folder) / name, group=os.path.relpath(folder, directory)))
    return frozenset(options)


def _options_in(file: Path, *, group: str) -> Iterator[Option]:
    try:
        text = read_text(file)
        content = parse_yaml(text) if "_target_" in text else None
    except (ValueError, UserError):
        return
    for path, node in walk_nodes(content, package_in(text, group=group, name=file.stem)):
        yield Option(node=path, target=str(node["_target_"]), call_flags=call_flags_of(node))


def check_class(node: Mapping[Any, Any], path: str, extra: frozenset[Option]) -> None:
    """Refuse a node whose class, or the way it is called, no option file names for that place.

    Args:
        node: a dict with a ``_target_``.
        path: its place in the configuration.
        extra: the options of the user's own directory.

    Raises:
        UserError: the class is not allowed there.
    """
    target, place = node["_target_"], SOURCE_PATH.sub("dataset", LAYER_KIND_PATH.sub("model.block", path))
    options = builtin_options().get(place, frozenset()) | {option for option in extra if option.node == place}
    if not options:
        hint = "no option file names a class for this key; it takes a value"
        raise UserError("class not allowed", key=f"{path}._target_", value=target, hint=hint)
    named = sorted({option.target for option in options})
    of_torch = place in TORCH and isinstance(target, str) and target.startswith(TORCH[place])
    if target not in named and not of_torch:
        more = f" or {TORCH[place]}*" if place in TORCH else ""
        hint = (
            f"allowed: {', '.join(named)}{more}; to use your own class, name it in an option file of your --config-dir"
        )
        raise UserError("class not allowed", key=f"{path}._target_", value=target, hint=hint)
    if call_flags_of(node) not in {option.call_flags for option in options}:
        known = [parse_json(option.call_flags) for option in options]
        flag = next(
            (name for name in HYDRA_CALL_KEYS if not any(flags.get(name) == node.get(name) for flags in known)),
            HYDRA_CALL_KEYS[0],
        )
        hint = f"it is set by the option file of the class, e.g. {min(option.call_flags for option in options)}"
        raise UserError("not allowed here", key=f"{path}.{flag}", value=node.get(flag), hint=hint)


def check_classes(node: Any, path: str = "", extra: frozenset[Option] = frozenset()) -> None:
    """Refuse a plain container with a class that no option file names for its place.

    Raises:
        UserError: with the key and the class.
    """
    for where, target_node in walk_nodes(node, path):
        check_class(target_node, where, extra)


def resolve_target(node: Mapping[Any, Any], *, path: str, extra: frozenset[Option] = frozenset()) -> Any:
    """The class or function that a node names.

    Args:
        node: a dict with a ``_target_``.
        path: its place in the configuration.
        extra: options besides those of ``conf/``.

    Raises:
        UserError: no option file names it for that place, or it does not exist.
    """
    check_class(node, path, extra)
    target, where = str(node["_target_"]), f"{path}._target_"
    module_name, _, name = target.rpartition(".")
    try:
        target_object = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = f"{error}; write package.module.Class, importable from the current directory"
        raise UserError("no such class", key=where, value=target, hint=hint) from error
    if not callable(target_object) or (target.startswith(tuple(TORCH.values())) and not _is_optimizer(target_object)):
        hint = "name a class or function that the module defines"
        raise UserError("not a class or function", key=where, value=target, hint=hint)
    return target_object


def _is_optimizer(target: Any) -> bool:
    return inspect.isclass(target) and issubclass(target, importlib.import_module("torch.optim").Optimizer)


def type_problem(value: Any, annotation: Any) -> str | None:
    """A description of the allowed values if ``value`` is not of the annotated type; None if it is or may be."""
    if _fits(value, annotation):
        return None
    return _describe(annotation)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, item) for item in arguments)
    if origin is typing.Literal:
        return any(value == item and type(value) is type(item) for item in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if origin is Callable:
        return isinstance(value, dict)
    if origin in SEQUENCES:
        if not isinstance(value, list | tuple):
            return False
        fixed = origin is tuple and Ellipsis not in arguments
        if fixed and len(value) != len(arguments):
            return False
        kinds = arguments if fixed else arguments[:1] * len(value)
        return all(_fits(item, kind) for item, kind in zip(value, kinds, strict=False))
    if origin in MAPPINGS:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    return True


def converted(value: Any, annotation: Any) -> Any:
    """``value`` with whole numbers turned into floats where the annotation asks for floats, including in sequences.

    A whole number stays one where the annotation allows it. Some libraries distinguish 0 from 0.0: PyTorch
    rejects betas of mixed types.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is float:
        return float(value) if _fits(value, int) else value
    if origin in (typing.Union, types.UnionType):
        if _fits(value, int):
            whole = [item for item in arguments if item is int or typing.get_origin(item) is typing.Literal]
            stays = float not in arguments or any(_fits(value, item) for item in whole)
            return value if stays else float(value)
        return converted(value, next((item for item in arguments if _fits(value, item)), None))
    if origin in SEQUENCES and _fits(value, annotation):
        fixed = origin is tuple and Ellipsis not in arguments
        kinds = arguments if fixed else arguments[:1] * len(value)
        return [converted(item, kind) for item, kind in zip(value, kinds, strict=True)]
    if origin in MAPPINGS and isinstance(value, dict):
        return {key: converted(item, arguments[1]) for key, item in value.items()}
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in arguments if part is not int or float not in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin is Callable:
        return "a group of keys with a _target_"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values, each {_describe(arguments[0])}"
    if origin in SEQUENCES:
        return f"a list, each {_describe(arguments[0])}"
    if origin in MAPPINGS:
        return f"names, each with {_describe(arguments[1])}"
    return str(annotation)


def work_named(name: str) -> Callable[..., Any]:
    """The function ``package.module:name``.

    Commands name their work like this, so that a mistake in the command line is answered before the work's file, and
    with it torch, is loaded.
    """
    module, _, attribute = name.partition(":")
    work: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return work
