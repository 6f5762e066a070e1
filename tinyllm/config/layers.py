"""Layers that differ: the block of each kind, composed on top of the run's own settings and put into the configuration.

After that the configuration stands for itself: it is checked, saved, compared and built like any other, and nothing
has to be composed again to load a model.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.grammar import key_of, words
from tinyllm.config.layers_jsonl import at, read_layers
from tinyllm.config.targets import Option, resolve_target
from tinyllm.errors import UserError, setting
from tinyllm.utils.nested import has_key
from tinyllm.utils.signatures import parameters_of

GROUPS = ("attn", "ffn", "moe")
"""The groups of which each kind may choose another option: those that put their keys into the block."""
SHARED = ("d_model", "max_seq_len")
"""What a block is told of the model's shape and all layers have in common."""
UNIFORM = {"_target_": "tinyllm.models.layers.uniform", "_partial_": True}
Recompose = Callable[[Iterable[str]], DictConfig]
"""Composes again with more overrides on top: :meth:`tinyllm.config.compose.Composition.with_overrides`."""
Check = Callable[[DictConfig, set[str]], None]
"""The preflight of a composition, with the keys that were named."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The block of some of the layers, as it is described."""

    overrides: tuple[str, ...]
    wrong: Callable[[UserError], UserError]
    """Adds to an error where the description stands."""


def expand(
    cfg: DictConfig, *, recompose: Recompose, check: Check, named: Iterable[str], allow: frozenset[Option]
) -> None:
    """Replace the descriptions in ``model.layers`` by the blocks they stand for; uniform layers have none.

    Args:
        cfg: a composed configuration, changed in place.
        recompose: composes it again with the overrides of a kind on top.
        check: applied to what each kind composes to.
        named: keys and groups that the user named; one that concerns blocks must reach a layer.
        allow: options besides those of ``conf/``.

    Raises:
        UserError: a description that does not compose or sets what all layers share, a key without effect.
    """
    node = None if OmegaConf.is_missing(cfg, "model") else OmegaConf.select(cfg, "model.layers")
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}
    if "json" in plain:
        kinds, pattern = _from_lines(plain, cfg, recompose, allow)
    elif plain.get("kinds", "???") != "???":
        kinds, pattern = _from_texts(plain["kinds"]), plain["pattern"]
    else:
        return
    keys_of_block = _keys_of_block(cfg, allow)
    blocks, own = {}, []
    for name, kind in kinds.items():
        keys = {key_of(one) for one in kind.overrides}
        try:
            _check_keys(kind.overrides, keys_of_block)
            composed = recompose(kind.overrides) if kind.overrides else cfg
            if kind.overrides:
                with open_dict(composed):
                    composed.model.layers = UNIFORM
                check(composed, keys)
        except UserError as error:
            raise kind.wrong(error) from error
        block: Any = OmegaConf.to_container(composed.model.block, resolve=True)
        own.append((keys, block))
        blocks[name] = block | {key: composed.model[key] for key in keys_of_block if f"model.{key}" in keys}
    _check_reach(cfg, set(named), keys_of_block, own)
    rest = {key: value for key, value in plain.items() if key not in ("path", "json")}
    with open_dict(cfg):
        cfg.model.layers = {"truncate": False} | rest | {"kinds": blocks, "pattern": pattern}


def _keys_of_block(cfg: DictConfig, allow: frozenset[Option]) -> list[str]:
    """The keys of the model that a block may have a value of its own for."""
    target = resolve_target(cfg.model.block, path="model.block", extra=allow)
    values = {key: cfg.model[key] for key in parameters_of(target) or {} if key in cfg.model and key not in SHARED}
    return [key for key, value in values.items() if not isinstance(value, DictConfig)]


def _from_texts(texts: Any) -> dict[str, Kind]:
    """The kinds of ``model.layers.kinds``."""
    where = "model.layers.kinds"
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        hint = 'names with their overrides as text, e.g. {global:"",local:"model.block.attn.window=64"}'
        raise UserError("wrong type", key=where, value=texts, hint=hint)
    kinds = {}
    for name, text in texts.items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(name)):
            raise UserError("not a name for a kind", key=where, value=name, hint="a letter, then letters, digits and _")

        def wrong(error: UserError, key: str = f"{where}.{name}", text: str = text) -> UserError:
            what = setting(error.key, error.value) if error.key else str(error.file or "")
            return UserError(error.what, key=key, value=text, hint=": ".join(filter(None, (what, error.hint))))

        try:
            kinds[name] = Kind(overrides=tuple(words(text)), wrong=wrong)
        except UserError as error:
            raise wrong(error) from error
    return kinds


def _from_lines(
    plain: dict[str, Any], cfg: DictConfig, recompose: Recompose, allow: frozenset[Option]
) -> tuple[Any, list[str]]:
    """The kinds of layers that are written out, each named after the first layer of it; and the name of each layer."""

    @cache
    def parameters(attn: str) -> set[str]:
        node = recompose([f"attn={attn}"]).model.block.attn
        return set(parameters_of(resolve_target(node, path="model.block.attn", extra=allow)) or ())

    text, source = _text(plain["path"], plain["json"])
    lines = read_layers(text, source=source, parameters=parameters)
    if len(lines) != cfg.model.n_layers:
        hint = f"{len(lines)} objects, and model.n_layers={cfg.model.n_layers}"
        raise UserError("not one object for each layer", file=source, hint=hint)
    names: dict[tuple[str, ...], str] = {}
    kinds = {}
    for line in lines:
        name = names.setdefault(line.overrides, line.name)
        if name == line.name:
            kinds[name] = Kind(overrides=line.overrides, wrong=partial(at, line.place))
    return kinds, [names[line.overrides] for line in lines]


def _text(path: Any, json: Any) -> tuple[str, str]:
    """The JSON and where it comes from."""
    if (path is None) == (json is None):
        what = "no layers are given" if path is None else "two descriptions of the layers"
        hint = "one of model.layers.path and model.layers.json"
        raise UserError(what, key="model.layers.path", value=path, hint=hint)
    if path is None:
        return str(json), "model.layers.json"
    try:
        return Path(path).read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable file", key="model.layers.path", value=path, hint=str(error)) from error


def _check_keys(overrides: Iterable[str], keys_of_block: list[str]) -> None:
    """Refuse what is the same for all layers."""
    for one in overrides:
        key = key_of(one)
        if key not in GROUPS and not key.startswith("model.block.") and key.removeprefix("model.") not in keys_of_block:
            own = [f"model.{name}" for name in keys_of_block]
            hint = f"a layer may have its own {', '.join(GROUPS)}, model.block.*, {', '.join(own)}"
            raise UserError("the same for all layers", key=key, value=one.partition("=")[2], hint=hint)


def _check_reach(
    cfg: DictConfig, named: set[str], keys_of_block: list[str], own: list[tuple[set[str], dict[str, Any]]]
) -> None:
    """Refuse a key or a choice that was named for the block, and that every kind replaces or has no use for."""
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
            raise UserError("the key has no effect here", **what, hint="every layer has its own; leave it out")
