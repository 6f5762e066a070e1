"""From a configuration node to an object: the only place that calls Hydra's ``instantiate``."""

import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.targets import resolve_target, walk_targets
from tinyllm.errors import UserError, one_line


def build(node: Any, *args: Any, path: str = "", allow: frozenset[str] = frozenset(), **runtime: Any) -> Any:
    """Build the object a node describes; every ``_target_`` below it is checked against the allow-list first.

    Args:
        node: a dict (or DictConfig) with ``_target_``; ``_partial_: true`` gives a ``functools.partial``.
        args, runtime: values only known now, such as ``vocab_size``; they win over the node's.
        path: where the node stands in the configuration, for error messages.
        allow: further targets, from :func:`tinyllm.config.targets.targets_of_directory`.

    Raises:
        UserError: a target is not allowed or does not exist, or a constructor refused a value.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    for where, target in walk_targets(plain, path):
        resolve_target(target, path=where, extra=allow)
    try:
        return instantiate(plain, *args, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError):
            raise refused(str(cause), plain, path) from error
        raise


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
    for name in re.findall(r"(\w+)=", message):
        found = _find(node, name)
        if found is not None:
            where, value = found
            return UserError(one_line(message), key=f"{path}.{where}" if path else where, value=value)
    return UserError(one_line(message), file=path or None)


def _find(node: Any, name: str) -> tuple[str, Any] | None:
    """The dotted path and value of the key ``name``, the shallowest first."""
    if not isinstance(node, Mapping):
        return None
    if name in node and not isinstance(node[name], Mapping):
        return name, node[name]
    for child, value in node.items():
        deeper = _find(value, name)
        if deeper is not None:
            return f"{child}.{deeper[0]}", deeper[1]
    return None
