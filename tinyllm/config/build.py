"""From a configuration node to an object: the only place that calls Hydra's ``instantiate``."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.targets import annotations_of, converted, resolve_target, walk_targets
from tinyllm.errors import UserError, one_line

DERIVED = {"head_dim": "d_model"}
"""Sizes that a constructor may refuse and that are no keys, with the key they follow from."""


def build(node: Any, *args: Any, path: str = "", allow: frozenset[str] = frozenset(), **runtime: Any) -> Any:
    """Build the object a node describes; every ``_target_`` below it is checked against the allow-list first.

    Args:
        node: a dict (or DictConfig) with ``_target_``; ``_partial_: true`` gives a ``functools.partial``.
        args, runtime: values only known now, such as ``vocab_size``; they win over the node's. A whole number in the
            node becomes a float where the signature says so.
        path: where the node stands in the configuration, for error messages.
        allow: further targets, from :func:`tinyllm.config.targets.targets_of_directory`.

    Raises:
        UserError: a target is not allowed or does not exist, or a constructor refused a value.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    targets = {target: resolve_target(target, path=where, extra=allow) for where, target in walk_targets(plain, path)}
    try:
        return instantiate(_as_annotated(plain, targets), *args, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError):
            raise refused(str(cause), plain, path) from error
        raise


def _as_annotated(node: Any, targets: Mapping[str, Any]) -> Any:
    """A copy of a node in which every argument of a target has the type that its signature says."""
    if isinstance(node, list):
        return [_as_annotated(one, targets) for one in node]
    if not isinstance(node, dict):
        return node
    annotations = annotations_of(targets[str(node["_target_"])]) if "_target_" in node else {}
    whole = {name: _as_annotated(value, targets) for name, value in node.items()}
    return {name: converted(value, annotations.get(name)) for name, value in whole.items()}


def call(factory: Any, *args: Any, node: Any, path: str, **runtime: Any) -> Any:
    """Call a ``functools.partial`` that :func:`build` made, with the same error lines.

    Raises:
        UserError: the factory refused a value.
    """
    try:
        return factory(*args, **runtime)
    except ValueError as error:
        raise refused(str(error), node, path) from error


def refused(message: str, node: Any, path: str) -> UserError:
    """The error line for a constructor's sentence: the first ``name=value`` in it gives the config path."""
    found = []
    for name, text in re.findall(r"(\w+)=(\S*)", message):
        text = text.rstrip(".,;:")
        places = sorted(_places(node, DERIVED.get(name, name)), key=lambda place: place[0].count("."))
        if places:
            same = [place for place in places if text in (str(place[1]), _as_float(place[1]))]
            where, value = (same or places)[0]
            found.append((where, value))
            if text == _as_float(value):  # the sentence shall say what was written
                message = message.replace(f"{name}={text}", f"{name}={value}", 1)
    if not found:
        return UserError(one_line(message), file=path or None)
    # of two values that do not go together, the one that is a single layer's says more than the one of all
    where, value = next((one for one in found if one[0].startswith("layers.kinds.")), found[0])
    return UserError("value not allowed", key=f"{path}.{where}" if path else where, value=value, hint=one_line(message))


def _as_float(value: Any) -> str:
    return str(float(value)) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _places(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The dotted path and the value of every key ``name``."""
    for child, value in node.items() if isinstance(node, Mapping) else ():
        if child == name and not isinstance(value, Mapping):
            yield child, value
        for where, found in _places(value, name):
            yield f"{child}.{where}", found
