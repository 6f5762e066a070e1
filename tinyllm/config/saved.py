"""Configurations and settings out of files: of a run, a study, a sweep. Whoever wrote them, they are values.

What a person types may reach everything that Hydra has. What a file holds sets keys and chooses options by their names:
no setting of Hydra itself, which builds what such a setting names; no path to another file; nothing that is looked up
in the environment.
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.grammar import MOST, count_values, escaped, parse_settings, written
from tinyllm.config.migrations import renamed, upgraded
from tinyllm.config.option_files import conf_dir, is_option
from tinyllm.config.start_keys import NOT_SAVED
from tinyllm.config.targets import Option, check_classes
from tinyllm.errors import UserError
from tinyllm.utils.nested import has_key, value_at
from tinyllm.utils.yaml_files import read_yaml

EXPANDED = "model.layers"
"""Descriptions of layers, in whose place a configuration has the blocks they stand for."""
REFERENCE = re.compile(r"\$\{[A-Za-z_][\w.]*\}")
"""An interpolation that names another key of the configuration and nothing else."""


def saved_config(file: Path, *, allow: frozenset[Option] = frozenset()) -> DictConfig:
    """The resolved configuration that a run saved, written as today's; see :func:`saved_content`."""
    return upgraded(saved_content(file, allow=allow))


def saved_content(file: Path, *, allow: frozenset[Option] = frozenset()) -> DictConfig:
    """The resolved configuration that a run saved, as it saved it; every text in it is what it is.

    Args:
        file: its ``config.yaml``.
        allow: options besides those of ``conf/``, whose classes it may name.

    Raises:
        UserError: it cannot be read, or names a class where no option file does.
    """
    content = renamed(read_yaml(file, of=dict, what="checkpoint damaged"))
    try:
        check_classes(content, extra=allow)
    except UserError as error:
        raise UserError(error.what, key=error.key, value=error.value, file=file, hint=error.hint) from error
    cfg = OmegaConf.create(escaped(content))
    assert isinstance(cfg, DictConfig)
    return cfg


def saved_settings(file: Path, *, config: Path, config_dir: str | Path | None) -> list[str]:
    """The settings that a run saved, in Hydra's grammar.

    An interpolation in them is replaced by what it was when the run began: the environment may say otherwise today.

    Args:
        file: its ``overrides.yaml``.
        config: its ``config.yaml``.
        config_dir: the directory of option files on this command line.

    Raises:
        UserError: they are not settings of a run.
    """
    what = "not the settings of a run"
    settings = read_yaml(file, of=list, what=what)
    check_saved(settings, file=file, what=what, config_dir=config_dir, resolved=True)
    for one in settings:
        if parse(one)[0].key_or_group.partition(".")[0] in NOT_SAVED:
            raise UserError(what, file=file, hint=f"{one}: it belongs to one start of the program")
    if not any(map(_is_open, settings)):
        return settings
    settings = literal_settings(settings, read_yaml(config, of=dict, what="checkpoint damaged"))
    for one in filter(_is_open, settings):
        raise UserError(what, file=file, hint=f"{one}: {config.name} does not say what it was when the run began")
    return settings


def literal_settings(settings: Iterable[str], values: dict[str, Any]) -> list[str]:
    """Settings with what their interpolations have come to; one whose key holds something else by then stays as it is.

    Args:
        settings: in Hydra's grammar.
        values: the resolved configuration as plain containers.
    """
    found = []
    for one in settings:
        [override] = parse(one)
        key = override.key_or_group
        if _is_open(one) and not key.startswith(EXPANDED) and has_key(values, key):
            one = f"{override.get_key_element()}={written(value_at(values, key))}"
        found.append(one)
    return found


def _is_open(one: str) -> bool:
    """Whether a setting has an interpolation."""
    return any(_interpolations(parse(one)[0]))


def settings_text(settings: Iterable[str]) -> str:
    """Settings as the yaml that :func:`saved_settings` reads."""
    return yaml.safe_dump(list(settings), allow_unicode=True, width=math.inf)


def check_saved(
    settings: Iterable[Any],
    *,
    file: Path,
    what: str,
    config_dir: str | Path | None,
    several: bool = False,
    resolved: bool = False,
) -> None:
    """Refuse what a file has no business to set.

    Args:
        settings: in Hydra's grammar, literal values quoted.
        file: where they come from.
        what: what the line says.
        config_dir: the directory of option files on this command line.
        several: a key may have several values.
        resolved: interpolations are going to be replaced by values.

    Raises:
        UserError: such a setting; the line names it.
    """
    places = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    settings = list(settings)
    if sum(count_values(one) for one in settings if isinstance(one, str)) > MOST:
        raise UserError(what, file=file, hint=f"settings with more than {MOST:,} values")
    for one in settings:
        problem = _problem(one, places, several=several, resolved=resolved)
        if problem:
            raise UserError(what, file=file, hint=f"{one}: {problem}")


def parse(one: str) -> list[Override]:
    """One setting as Hydra reads it."""
    return parse_settings([one])


def _problem(one: Any, places: list[Path], *, several: bool, resolved: bool) -> str:
    """What is wrong with a setting; nothing: "" ."""
    if not isinstance(one, str) or one.startswith("-") or "=" not in one:
        return "settings are written key=value or group=option"
    try:
        [override] = parse(one)
    except HydraException as error:
        return str(error).splitlines()[0]
    key = override.key_or_group
    if override.is_delete():
        return "a key cannot be taken out"
    if override.package is not None or not re.fullmatch(r"[\w-]+([./][\w-]+)*", key):
        return "a key is names joined by dots"
    if re.split("[./]", key)[0] == "hydra":
        return "a setting of Hydra is typed, not read from a file"
    if override.is_sweep_override() and not several:
        return "several values"
    groups = [place for place in places if (place / key).is_dir()]
    if groups and (override.is_add() or override.is_force_add()) and places[0] in groups:
        return "an option is chosen without +"
    if groups:
        wrong = [name for name in _choices(override) if not is_option(key, name, places)]
        return f"{wrong[0]} is not the name of an option" if wrong else ""
    if "/" in key:
        return "no such group; one of your own needs its --config-dir"
    foreign = [] if resolved else [text for text in _interpolations(override) if not _refers(text)]
    return "a value out of a file is no interpolation but ${key}" if foreign else ""


def _refers(text: str) -> bool:
    return "${" not in REFERENCE.sub("", text) and "${hydra" not in text


def _choices(override: Override) -> list[Any]:
    """The options that an override of a group names."""
    if override.is_sweep_override():
        return list(override.sweep_iterator()) if override.is_discrete_sweep() else [str(override.value())]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _interpolations(override: Override) -> Iterator[str]:
    """The texts in the value of an override that OmegaConf would not take as they are."""
    for text in _texts(override._value):
        if re.search(r"(?<!\\)(\\\\)*\$\{", text):
            yield text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _texts(name)
            yield from _texts(child)
    elif isinstance(value, list | tuple | set):
        for child in value:
            yield from _texts(child)
    elif hasattr(value, "__dict__"):  # a sweep: its values, and what it is made of
        yield from _texts(list(vars(value).values()))
