"""Build objects from configuration nodes. The only code that calls a class named in a configuration."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from tinyllm.config.targets import HYDRA_CALL_KEYS, Option, check_classes, child_path, converted, resolve_target
from tinyllm.errors import UserError, one_line
from tinyllm.utils.memory import is_out_of_memory
from tinyllm.utils.signatures import annotations_of

DERIVED = {"head_dim": "d_model"}
"""Derived sizes that a constructor may refuse, with the keys from which they are computed."""


def build(node: Any, *args: Any, path: str = "", allow: frozenset[Option] = frozenset(), **runtime: Any) -> Any:
    """Build the object that a node describes, after checking every ``_target_`` in it.

    Hydra's ``instantiate`` would resolve interpolations in the node's strings a second time, which changes a path or
    prompt with ``${…}`` in it. Here strings are taken as they are.

    Args:
        node: a dict (or DictConfig) with ``_target_``; ``_partial_: true`` gives a ``functools.partial``.
        args, runtime: values that are only known now, such as ``vocab_size``. They replace the node's.
        path: the node's place in the configuration, which decides which classes are allowed.
        allow: options besides those of ``conf/``, from :func:`tinyllm.config.targets.options_of`.

    Raises:
        UserError: a target is not allowed or does not exist, or a constructor refused a value.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    check_classes(plain, path, allow)
    try:
        return _instantiate(plain, path, allow, args, runtime)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise constructor_error(str(error), plain, path) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the caller knows what the memory was for
        raise UserError(
            "cannot build this component", file=path or None, hint=f"{type(error).__name__}: {error}"
        ) from error


def _instantiate(
    node: Any, path: str, allow: frozenset[Option], args: tuple[Any, ...] = (), runtime: Mapping[str, Any] | None = None
) -> Any:
    """The node with every class in it called, innermost first."""
    if isinstance(node, list | tuple):
        return [_instantiate(child, f"{path}[{index}]", allow) for index, child in enumerate(node)]
    if not isinstance(node, Mapping):
        if node == MISSING:
            raise UserError("value missing", key=path, value=node, hint=f"set it: {path}=…")
        return node
    if "_target_" not in node:
        return {name: _instantiate(child, child_path(path, name), allow) for name, child in node.items()}
    target = resolve_target(node, path=path, extra=allow)
    annotations, values = annotations_of(target), dict(runtime or {})
    for name, child in node.items():
        if name not in ("_target_", *HYDRA_CALL_KEYS) and name not in values:
            value = converted(child, annotations.get(name))
            values[name] = (
                _instantiate(value, child_path(path, name), allow) if node.get("_recursive_", True) else value
            )
    arguments = args or tuple(node.get("_args_", ()))
    return functools.partial(target, *arguments, **values) if node.get("_partial_") else target(*arguments, **values)


def call(factory: Any, *args: Any, node: Any, path: str, **runtime: Any) -> Any:
    """Call a ``functools.partial`` that :func:`build` returned, with the same error messages.

    Raises:
        UserError: the factory refused a value.
    """
    try:
        return factory(*args, **runtime)
    except ValueError as error:
        raise constructor_error(str(error), node, path) from error


def constructor_error(message: str, node: Any, path: str) -> UserError:
    """The error for a constructor's message. The first ``name=value`` in the message gives the configuration key."""
    places_found = []
    for name, text in re.findall(r"(\w+)=(\S*)", message):
        text = text.rstrip(".,;:")
        places = sorted(_places(node, DERIVED.get(name, name)), key=lambda place: place[0].count("."))
        if places:
            same = [place for place in places if text in (str(place[1]), _as_float(place[1]))]
            where, value = (same or places)[0]
            places_found.append((where, value))
            if text == _as_float(value):  # show the value as the user wrote it
                message = message.replace(f"{name}={text}", f"{name}={value}", 1)
    if not places_found:
        return UserError(one_line(message), file=path or None)
    # if the message names several keys, prefer one of a single kind of layer
    where, value = next((place for place in places_found if place[0].startswith("layers.kinds.")), places_found[0])
    return UserError("value not allowed", key=f"{path}.{where}" if path else where, value=value, hint=one_line(message))


def _as_float(value: Any) -> str:
    return str(float(value)) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _places(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The dotted path and the value of every key ``name``."""
    for child, value in node.items() if isinstance(node, Mapping) else ():
        if child == name and not isinstance(value, Mapping):
            yield child, value
        for where, nested in _places(value, name):
            yield f"{child}.{where}", nested
