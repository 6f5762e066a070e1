"""Layers of different kinds: compose a block per kind on top of the run's settings, into the configuration.

The result is an ordinary configuration: it is checked, saved, compared and built like any other, and loading a model
composes nothing.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.grammar import key_of, words
from tinyllm.config.layers_jsonl import read_layers, with_place
from tinyllm.config.targets import Option, resolve_target
from tinyllm.errors import UserError, setting
from tinyllm.utils.nested import has_key
from tinyllm.utils.signatures import parameters_of

GROUPS = ("attn", "ffn", "moe")
"""Groups whose option each kind may choose: those whose keys are part of the block."""
SHARED = ("d_model", "max_seq_len")
"""Keys of the model that a block receives and that all layers share."""
UNIFORM = {"_target_": "tinyllm.models.layers.uniform", "_partial_": True}
Recompose = Callable[[Iterable[str]], DictConfig]
"""Composes again with more overrides on top: :meth:`tinyllm.config.compose.Composition.with_overrides`."""
Check = Callable[[DictConfig, set[str]], None]
"""Checks a composition, given the keys that the user set."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The description of a kind of layer."""

    overrides: tuple[str, ...]
    with_place: Callable[[UserError], UserError]
    """Adds the place of the description to an error."""


def expand(
    cfg: DictConfig, *, recompose: Recompose, check: Check, named: Iterable[str], allow: frozenset[Option]
) -> None:
    """Replace the descriptions in ``model.layers`` with blocks. Uniform layers have no descriptions.

    Args:
        cfg: a composed configuration, changed in place.
        recompose: composes it again with the overrides of a kind on top.
        check: checks the composition of each kind.
        named: keys and groups that the user set; those of the block must reach at least one layer.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: a description does not compose or sets what all layers share, or a key has no effect.
    """
    node = None if OmegaConf.is_missing(cfg, "model") else OmegaConf.select(cfg, "model.layers")
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}
    if "json" in plain:
        kinds, pattern = _from_lines(plain, cfg, recompose, allow)
    elif plain.get("kinds", "???") != "???":
        kinds, pattern = _from_descriptions(plain["kinds"]), plain["pattern"]
    else:
        return
    keys_of_block = _keys_of_block(cfg, allow)
    blocks, own = {}, []
    for name, kind in kinds.items():
        keys = {key_of(override) for override in kind.overrides}
        try:
            _check_keys(kind.overrides, keys_of_block)
            composed = recompose(kind.overrides) if kind.overrides else cfg
            if kind.overrides:
                with open_dict(composed):
                    composed.model.layers = UNIFORM
                check(composed, keys)
        except UserError as error:
            raise kind.with_place(error) from error
        block: Any = OmegaConf.to_container(composed.model.block, resolve=True)
        own.append((keys, block))
        blocks[name] = block | {key: composed.model[key] for key in keys_of_block if f"model.{key}" in keys}
    _check_reach(cfg, set(named), keys_of_block, own)
    rest = {key: value for key, value in plain.items() if key not in ("path", "json")}
    with open_dict(cfg):
        cfg.model.layers = {"truncate": False} | rest | {"kinds": blocks, "pattern": pattern}


def _keys_of_block(cfg: DictConfig, allow: frozenset[Option]) -> list[str]:
    """Keys of the model for which a block may have its own value."""
    target = resolve_target(cfg.model.block, path="model.block", extra=allow)
    values = {key: cfg.model[key] for key in parameters_of(target) or {} if key in cfg.model and key not in SHARED}
    return [key for key, value in values.items() if not isinstance(value, DictConfig)]


def _from_descriptions(descriptions: Any) -> dict[str, Kind]:
    """The layer kinds described in ``model.layers.kinds``, by name."""
    where = "model.layers.kinds"
    if not isinstance(descriptions, dict) or not all(isinstance(text, str) for text in descriptions.values()):
        hint = 'a mapping of names to overrides, e.g. {global:"",local:"model.block.attn.window=64"}'
        raise UserError("wrong type", key=where, value=descriptions, hint=hint)
    kinds = {}
    for name, text in descriptions.items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(name)):
            hint = "use a letter followed by letters, digits or _"
            raise UserError("invalid name for a kind of layer", key=where, value=name, hint=hint)
        in_kind = partial(_in_kind, f"{where}.{name}", text)
        try:
            kinds[name] = Kind(overrides=tuple(words(text)), with_place=in_kind)
        except UserError as error:
            raise in_kind(error) from error
    return kinds


def _in_kind(key: str, text: str, error: UserError) -> UserError:
    """Add the key and text of a kind to an error in its overrides."""
    what = setting(error.key, error.value) if error.key else str(error.file or "")
    return UserError(error.what, key=key, value=text, hint=": ".join(filter(None, (what, error.hint))))


def _from_lines(
    plain: dict[str, Any], cfg: DictConfig, recompose: Recompose, allow: frozenset[Option]
) -> tuple[Any, list[str]]:
    """The kinds of written-out layers, each named after its first layer, and the kind of every layer."""

    parameters = cache(partial(_attention_parameters, recompose, allow))  # composing is slow, and lines repeat
    text, source = _text(plain["path"], plain["json"])
    lines = read_layers(text, source=source, parameters=parameters)
    if len(lines) != cfg.model.n_layers:
        hint = f"{len(lines)} object{'s' * (len(lines) != 1)}, but model.n_layers={cfg.model.n_layers}"
        raise UserError("the number of objects does not match the number of layers", file=source, hint=hint)
    names: dict[tuple[str, ...], str] = {}
    kinds = {}
    for line in lines:
        name = names.setdefault(line.overrides, line.name)
        if name == line.name:
            kinds[name] = Kind(overrides=line.overrides, with_place=partial(with_place, line.place))
    return kinds, [names[line.overrides] for line in lines]


def _attention_parameters(recompose: Recompose, allow: frozenset[Option], attn: str) -> set[str]:
    """The constructor parameters of an attention option."""
    node = recompose([f"attn={attn}"]).model.block.attn
    return set(parameters_of(resolve_target(node, path="model.block.attn", extra=allow)) or ())


def _text(path: Any, json: Any) -> tuple[str, str]:
    """The JSON text and its source."""
    if (path is None) == (json is None):
        what = "no layers are given" if path is None else "the layers are given twice"
        hint = "set exactly one of model.layers.path and model.layers.json"
        raise UserError(what, key="model.layers.path", value=path, hint=hint)
    if path is None:
        return str(json), "model.layers.json"
    try:
        return Path(path).read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable file", key="model.layers.path", value=path, hint=str(error)) from error


def _check_keys(overrides: Iterable[str], keys_of_block: list[str]) -> None:
    """Refuse overrides of what all layers share."""
    for override in overrides:
        key = key_of(override)
        if key not in GROUPS and not key.startswith("model.block.") and key.removeprefix("model.") not in keys_of_block:
            own = [f"model.{name}" for name in keys_of_block]
            hint = f"layers may differ in {', '.join(GROUPS)}, model.block.*, {', '.join(own)}"
            raise UserError(
                "this key cannot differ between layers", key=key, value=override.partition("=")[2], hint=hint
            )


def _check_reach(
    cfg: DictConfig, named: set[str], keys_of_block: list[str], own: list[tuple[set[str], dict[str, Any]]]
) -> None:
    """Refuse a key or choice of the block that every kind replaces or does not have."""
    for key in sorted(named):
        below = key.removeprefix("model.block.")
        if below != key:
            reached = any(key not in keys and has_key(block, below) for keys, block in own)
        elif key in GROUPS or key.removeprefix("model.") in keys_of_block:
            reached = any(key not in keys for keys, _ in own)
        else:
            continue
        if not reached:
            value = OmegaConf.select(cfg, key) if key not in GROUPS else None
            what = {"key": key, "value": value} if key not in GROUPS else {"file": key}
            raise UserError("the key has no effect here", **what, hint="every layer sets its own; leave it out")
