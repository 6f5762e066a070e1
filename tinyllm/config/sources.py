"""The sources of a mixture: compose a data set from each string of ``dataset.sources``.

The result is an ordinary configuration: it is checked, saved, compared and built like any other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tinyllm.config.grammar import escaped, key_of, words
from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError, setting

SOURCES = "dataset.sources"
EXAMPLE = '{prose:"dataset=pydocs",mine:"dataset=text dataset.path=notes/"}'
Compose = Callable[[list[str]], DictConfig]
"""Composes a configuration of nothing but data from overrides."""
Check = Callable[[DictConfig, list[str]], None]
"""Checks such a configuration, given its overrides."""


def expand(cfg: DictConfig, *, compose: Compose, check: Check) -> None:
    """Replace the descriptions in ``dataset.sources`` with the data sets that they compose.

    Args:
        cfg: a composed configuration, changed in place; without a mixture it stays as it is.
        compose: composes the data set of a source.
        check: checks it.

    Raises:
        UserError: a description does not compose, or sets anything but a data set.
    """
    node = None if OmegaConf.is_missing(cfg, "dataset") else OmegaConf.select(cfg, "dataset")
    if not isinstance(node, DictConfig) or "sources" not in node or OmegaConf.is_missing(node, "sources"):
        return
    descriptions: Any = node.sources
    if isinstance(descriptions, DictConfig):
        descriptions = OmegaConf.to_container(descriptions, resolve=True)
    if not isinstance(descriptions, dict) or not descriptions:
        hint = f"give a mapping of names to overrides, e.g. {EXAMPLE}"
        raise UserError("no sources", key=SOURCES, value=descriptions, hint=hint)
    sources = {name: _composed(name, text, cfg, compose, check) for name, text in descriptions.items()}
    with open_dict(cfg):
        cfg.dataset.sources = sources


def _composed(name: Any, text: Any, cfg: DictConfig, compose: Compose, check: Check) -> Any:
    """The node of one source."""
    where = f"{SOURCES}.{name}"
    if isinstance(text, dict) and "_target_" in text:  # an option file of the user's own may write a source out
        return escaped(text)
    if not isinstance(text, str):
        hint = f"give overrides in a string, e.g. {EXAMPLE}"
        raise UserError("wrong type", key=where, value=text, hint=hint)
    in_source = partial(_in_source, where, text)
    try:
        overrides = [_in_grammar(override) for override in data_overrides(text)]
        composed = compose(overrides)
        if composed.dataset.get("_target_") == cfg.dataset.get("_target_"):
            raise UserError("a source is a mixture", hint="mixtures do not nest; name its sources here")
        check(composed, overrides)
    except UserError as error:
        raise in_source(error) from error
    return escaped(OmegaConf.to_container(composed.dataset, resolve=True))


def data_overrides(text: str) -> list[str]:
    """The overrides that choose a data set, as typed, from a string of them.

    Raises:
        UserError: they set anything else, or choose none.
    """
    overrides = words(text)
    _check_keys(overrides)
    return overrides


def _in_grammar(override: str) -> str:
    """An override as typed inside the string, in Hydra's grammar."""
    return override if override.partition("=")[2][:1] in ("'", '"') else quote_literals([override])[0]


def _check_keys(overrides: list[str]) -> None:
    """Refuse overrides of anything but the data set.

    Raises:
        UserError: there is one, or no data set is chosen.
    """
    for override in overrides:
        key = key_of(override)
        if key != "dataset" and not key.startswith("dataset."):
            hint = "a source sets only dataset=… and dataset.*; everything else is the same for all sources"
            raise UserError("not a key of a data set", key=key, value=override.partition("=")[2], hint=hint)
    if not any(key_of(override) == "dataset" for override in overrides):
        raise UserError("no data set is chosen", hint="begin with one, e.g. dataset=text dataset.path=notes/")


def _in_source(where: str, text: str, error: UserError) -> UserError:
    """Add the key and the text of a source to an error in its overrides."""
    place = setting(error.key, error.value) if error.key else str(error.file or "")
    return UserError(error.what, key=where, value=text, hint=": ".join(filter(None, (place, error.hint))))
