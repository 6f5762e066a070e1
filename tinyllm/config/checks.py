"""Check a whole configuration before a run directory, a corpus or a model exists.

Hydra accepts ``+key=`` on a dataclass and any key in an untyped node. So every node is checked here: dataclass fields
against their ranges, nodes with a ``_target_`` against the constructor that it names.
"""

import dataclasses
import math
import operator
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyllm.config.no_effect import check_effects
from tinyllm.config.quoting import conformed, kind_of
from tinyllm.config.schema import fields_of
from tinyllm.config.suggestions import near, setting_keys, unknown_key
from tinyllm.config.targets import HYDRA_CALL_KEYS, Option, check_classes, resolve_target, type_problem, walk_nodes
from tinyllm.errors import UserError
from tinyllm.utils.nested import value_at
from tinyllm.utils.signatures import annotations_of, parameters_of
from tinyllm.utils.text import LARGEST_INTEGER, whole_number

AT_RUN_TIME = frozenset({"model.vocab_size"})
"""Arguments that are filled in at run time where they are null."""
LIMITS = {"at_least": operator.ge, "above": operator.gt, "below": operator.lt, "at_most": operator.le}
"""Bounds of :func:`tinyllm.config.schema_key.key`, and when a value satisfies them."""
HYDRA_KEYS = ("_target_", *HYDRA_CALL_KEYS)


def check(
    cfg: DictConfig,
    schema: type,
    *,
    named: Iterable[str] = (),
    set_by_program: Collection[str] = (),
    typed: Mapping[str, str] | None = None,
    allow: frozenset[Option] = frozenset(),
) -> None:
    """Check every key of a composed configuration, and convert values to the types of their keys, in place.

    Args:
        cfg: the composed configuration, without the ``hydra`` node.
        schema: the dataclass of its root.
        named: keys that the user set on the command line or in an experiment; they must take effect.
        set_by_program: keys set by the program; they never disable another key.
        typed: the value of each key on the command line, in Hydra's grammar.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: an unknown key, a missing value, a wrong type, a value out of range, a key without effect.
    """
    _read_interpolated(cfg, schema)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError("value missing", key=missing[0], value="???", hint=f"set it: {missing[0]}=…")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_classes(plain, extra=allow)
    _conform(cfg, plain, schema, typed or {}, allow)
    _check_fields(plain, schema, "", plain)
    for path, node in walk_nodes(plain, ""):
        _check_target(node, path, allow, plain)
    for path, number in _numbers(plain, ""):
        if not math.isfinite(number):
            raise UserError("not a finite number", key=path, value=number, hint="must be finite")
        if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
            raise UserError("value out of range", key=path, value=number, hint=f"at most {LARGEST_INTEGER}")
    check_effects(plain, named=named, set_by_program=set_by_program, allow=allow)


def _read_interpolated(cfg: DictConfig, schema: type) -> None:
    """Convert whole numbers from environment variables, which may be written as on the command line, e.g. ``1e3``."""
    whole = [key for key, field in fields_of(schema) if kind_of(field.type, field.metadata) == "whole"]
    keys = [key for key in whole if OmegaConf.is_interpolation(*_parent(cfg, key))]
    if not keys:
        return
    untyped = OmegaConf.create(OmegaConf.to_container(cfg))
    for key in keys:
        number = whole_number(str(OmegaConf.select(untyped, key)))
        if number is not None:
            OmegaConf.update(cfg, key, number)


def _parent(cfg: DictConfig, key: str) -> tuple[Any, str]:
    node, _, name = key.rpartition(".")
    return (OmegaConf.select(cfg, node) if node else cfg), name


def _conform(
    cfg: DictConfig, plain: dict[str, Any], schema: type, typed: Mapping[str, str], allow: frozenset[Option]
) -> None:
    """Convert values to the types of their keys, in ``cfg`` and in its plain form."""
    types: list[tuple[dict[str, Any], str, str, Any]] = []
    for key, field in fields_of(schema):
        path, _, name = key.rpartition(".")
        node = value_at(plain, path)
        if isinstance(node, dict) and name in node:
            types += [(node, name, key, int)] * bool(field.metadata.get("whole"))
            types += [(node, name, key, bool)] * (True in field.metadata.get("choices", ()))
    for path, node in walk_nodes(plain, ""):
        known = annotations_of(resolve_target(node, path=path, extra=allow))
        types += [(node, name, f"{path}.{name}", known[name]) for name in node if name in known]
    for node, name, key, annotation in types:
        value = node[name]
        now = conformed(value, annotation, typed=typed.get(key))
        if now != value or type(now) is not type(value):
            node[name] = now
            OmegaConf.update(cfg, key, now)


def _check_fields(node: dict[str, Any], schema: type, path: str, root: dict[str, Any]) -> None:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in node.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            key = next(setting_keys(value, where), where)  # norm.eps for +norm.eps=1: helps to suggest a key
            owner = path or "the configuration"
            value = value_at(root, key)
            raise unknown_key(key, value, fields, owner=owner, root=_without(root, where), unknown=where)
        field = fields[name]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            if not isinstance(value, dict):
                raise UserError(
                    "wrong type", key=where, value=value, hint="must be a group of keys, not a single value"
                )
            _check_fields(value, field.type, where, root)
        else:
            _check_range(value, field.metadata, where)


def _check_range(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    choices = metadata.get("choices")
    if value is None or (choices and any(value == choice and type(value) is type(choice) for choice in choices)):
        return
    if metadata.get("nonempty") and value == "":
        raise UserError("empty string", key=where, value=value, hint="give a value, or leave the key out")
    limits = [(name, metadata[name]) for name in LIMITS if metadata.get(name) is not None]
    bounds = [f"{name.replace('_', ' ')} {limit}" for name, limit in limits]
    if choices and (not bounds or not isinstance(value, int | float) or isinstance(value, bool)):
        words = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
        similar = near(str(value), words)
        hint = f"one of {', '.join(words)}" + (f", or a number {bounds[0]}" if bounds else "")
        hint += f"; did you mean {similar[0]}?" if similar else ""
        raise UserError("value not allowed", key=where, value=value, hint=hint)
    if choices and isinstance(value, float):  # a key that holds a word or a number counts something
        raise UserError("wrong type", key=where, value=value, hint="must be a whole number")
    if not all(LIMITS[name](value, limit) for name, limit in limits):  # NaN satisfies none of them
        raise UserError("value out of range", key=where, value=value, hint=" and ".join(bounds))


def _check_target(node: dict[str, Any], path: str, allow: frozenset[Option], root: dict[str, Any]) -> None:
    target = resolve_target(node, path=path, extra=allow)
    parameters, annotations = parameters_of(target), annotations_of(target)
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        where = f"{path}.{name}"
        if parameters is not None and name not in parameters:
            known = [name for name in given if name in parameters]
            owner = getattr(target, "__name__", str(target))
            raise unknown_key(where, value, known, owner=owner, root=_without(root, where))
        filled_later = value is None and where in AT_RUN_TIME
        if name in annotations and not (isinstance(value, dict) and "_target_" in value) and not filled_later:
            allowed = type_problem(value, annotations[name])
            if allowed:
                raise UserError("wrong type", key=where, value=value, hint=f"must be {allowed}")


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(node, float):
        yield path, node
    elif isinstance(node, int):
        yield path, node if abs(node) <= sys.float_info.max else math.inf if node > 0 else -math.inf
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _numbers(child, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for child in node:
            yield from _numbers(child, path)


def _without(node: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy without one key, so that the unknown key is not suggested for itself."""
    name, _, rest = path.partition(".")
    others = {key: child for key, child in node.items() if key != name}
    return others | {name: _without(node[name], rest)} if rest else others
