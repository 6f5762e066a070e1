"""The class that a ``_target_`` names, and what its constructor takes."""

import collections.abc
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tinyllm.config.allowed import TORCH, Option, check_class
from tinyllm.errors import UserError

SEQUENCES = (list, tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)


def resolve_target(node: Mapping[Any, Any], *, path: str, extra: frozenset[Option] = frozenset()) -> Any:
    """The class or function that a node names.

    Args:
        node: a dict with a ``_target_``.
        path: where it stands in the configuration.
        extra: options besides those of ``conf/``.

    Raises:
        UserError: no option file names it for that place (see :mod:`tinyllm.config.allowed`), or it does not exist.
    """
    check_class(node, path, extra)
    target, where = str(node["_target_"]), f"{path}._target_"
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = f"{error}; a class is written package.module.Class, and importable from here"
        raise UserError("no such class", key=where, value=target, hint=hint) from error
    if not callable(found) or (target.startswith(tuple(TORCH.values())) and not _is_optimizer(found)):
        hint = "name a class or function that is defined there"
        raise UserError("not a class of that package", key=where, value=target, hint=hint)
    return found


def _is_optimizer(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, importlib.import_module("torch.optim").Optimizer)


def parameters_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """The named parameters of a class or function; None when it takes any (``**kwargs``)."""
    if inspect.isclass(target):
        owner = next(base for base in target.__mro__ if "__init__" in vars(base))
        if owner.__module__.startswith("torch.nn."):  # its **kwargs are for subclasses to refuse
            return {}
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {name: p for name, p in parameters.items() if p.kind is not p.VAR_POSITIONAL}


def annotations_of(target: Any) -> dict[str, Any]:
    """The resolved annotations of a target's parameters."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def type_problem(value: Any, annotation: Any) -> str | None:
    """What is allowed, when ``value`` is not of the annotated type; None when it fits or nothing is known."""
    if _fits(value, annotation):
        return None
    return _describe(annotation)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
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
        return all(_fits(one, kind) for one, kind in zip(value, kinds, strict=False))
    if origin in MAPPINGS:
        return isinstance(value, dict) and all(_fits(one, arguments[1]) for one in value.values())
    return True


def converted(value: Any, annotation: Any) -> Any:
    """``value`` with a float wherever the annotation says so and a whole number was written, in sequences as well.

    What may be a whole number stays one. Libraries tell 0 from 0.0 where people do not: torch refuses betas of two
    types.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is float:
        return float(value) if _fits(value, int) else value
    if origin in (typing.Union, types.UnionType):
        if _fits(value, int):
            whole = [one for one in arguments if one is int or typing.get_origin(one) is typing.Literal]
            stays = float not in arguments or any(_fits(value, one) for one in whole)
            return value if stays else float(value)
        return converted(value, next((one for one in arguments if _fits(value, one)), None))
    if origin in SEQUENCES and _fits(value, annotation):
        fixed = origin is tuple and Ellipsis not in arguments
        kinds = arguments if fixed else arguments[:1] * len(value)
        return [converted(one, kind) for one, kind in zip(value, kinds, strict=True)]
    if origin in MAPPINGS and isinstance(value, dict):
        return {key: converted(one, arguments[1]) for key, one in value.items()}
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(one) for one in arguments if one is not int or float not in arguments)
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
