"""The check of the whole configuration, before a run directory, a corpus or a model exists.

Hydra lets ``+key=`` past a dataclass and anything into an untyped node, so every node is walked here: fields
of dataclass nodes against their ranges, ``_target_`` nodes against the constructor they name.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyllm.config.effects import check_effects
from tinyllm.config.targets import annotations_of, parameters_of, resolve_target, type_problem, walk_targets
from tinyllm.errors import UserError

AT_RUN_TIME = frozenset({"model.vocab_size"})
"""Arguments whose null means that the program fills them in."""
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(
    cfg: DictConfig, schema: type, *, named: Iterable[str] = (), allow: frozenset[str] = frozenset()
) -> None:
    """Check every key of a composed configuration.

    Args:
        cfg: the composed configuration, without the ``hydra`` node.
        schema: the dataclass of its root.
        named: keys that the user named on the command line or in an experiment; such a key must take effect.
        allow: further targets that may be named.

    Raises:
        UserError: an unknown key, a missing value, a wrong type, a value out of range, a key without effect.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError("value missing", key=missing[0], value="???", hint=f"set it: {missing[0]}=…")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    _check_fields(plain, schema, "")
    for path, _ in walk_targets(plain, ""):
        _check_target(_at(plain, path), path, allow)
    check_effects(plain, named=named, allow=allow)


def unknown_key(path: str, known: Iterable[str], *, owner: str) -> UserError:
    """The error for a key that nobody reads, with near names."""
    prefix, _, name = path.rpartition(".")
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    full = [f"{prefix}.{one}" if prefix else one for one in near]
    hint = f"did you mean {' or '.join(full)}?" if near else f"{owner} takes {', '.join(known) or 'no keys'}"
    return UserError("unknown key", file=path, hint=hint)


def _check_fields(node: dict[str, Any], schema: type, path: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in node.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            raise unknown_key(where, fields, owner=path or "the configuration")
        field = fields[name]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            if not isinstance(value, dict):
                raise UserError("wrong type", key=where, value=value, hint="a group of keys, not one value")
            _check_fields(value, field.type, where)
        else:
            _check_range(value, field.metadata, where)


def _check_range(value: Any, metadata: Any, where: str) -> None:
    choices, at_least, above = (metadata.get(name) for name in ("choices", "at_least", "above"))
    if value is None or (choices and any(value == one and type(value) is type(one) for one in choices)):
        return
    bounds = [f"at least {at_least:g}"] if at_least is not None else []
    bounds += [f"above {above:g}"] if above is not None else []
    if choices and (not bounds or not isinstance(value, int | float) or isinstance(value, bool)):
        words = [str(one).lower() if isinstance(one, bool) else str(one) for one in choices]
        near = difflib.get_close_matches(str(value), words, n=1)
        hint = f"one of {', '.join(words)}" + (f", or a number {bounds[0]}" if bounds else "")
        raise UserError(
            "value not allowed",
            key=where,
            value=value,
            hint=hint + (f"; did you mean {near[0]}?" if near else ""),
        )
    if (at_least is not None and not value >= at_least) or (above is not None and not value > above):
        raise UserError("value out of range", key=where, value=value, hint=" and ".join(bounds))


def _check_target(node: dict[str, Any], path: str, allow: frozenset[str]) -> None:
    target = resolve_target(str(node["_target_"]), path=path, extra=allow)
    parameters, annotations = parameters_of(target), annotations_of(target)
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        where = f"{path}.{name}"
        if parameters is not None and name not in parameters:
            known = [one for one in given if one in parameters]
            raise unknown_key(where, known, owner=getattr(target, "__name__", str(target)))
        filled_in = value is None and where in AT_RUN_TIME
        if name in annotations and not (isinstance(value, dict) and "_target_" in value) and not filled_in:
            allowed = type_problem(value, annotations[name])
            if allowed:
                raise UserError("wrong type", key=where, value=value, hint=f"must be {allowed}")


def _at(node: Any, path: str) -> Any:
    for name in path.split("."):
        name, *indices = name.replace("]", "").split("[")
        node = node[name] if name else node
        for index in indices:
            node = node[int(index)]
    return node
