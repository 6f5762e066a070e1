"""Configurations and settings read from the files of a run, a study or a sweep, which are untrusted.

The command line may use all of Hydra's grammar. A file may only set keys and choose options by name:
no Hydra settings, since Hydra builds the classes that they name, no paths to other files, and nothing from the
environment.
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

from tinyllm.config.grammar import MOST, count_values, escaped, parse_settings, to_grammar
from tinyllm.config.migrations import upgraded
from tinyllm.config.option_files import conf_dir, is_option
from tinyllm.config.renames import renamed, renamed_setting
from tinyllm.config.start_keys import NOT_SAVED
from tinyllm.config.targets import Option, check_classes
from tinyllm.errors import UserError
from tinyllm.utils.nested import has_key, value_at
from tinyllm.utils.yaml_files import read_yaml

EXPANDED = ("model.layers", "dataset.sources")
"""Hold descriptions in settings, but what they compose in a saved configuration."""
REFERENCE = re.compile(r"\$\{[A-Za-z_][\w.]*\}")
"""An interpolation that only refers to another key of the configuration."""


def saved_config(file: Path, *, allow: frozenset[Option] = frozenset()) -> DictConfig:
    """The resolved configuration that a run saved, upgraded to this version; see :func:`saved_content`."""
    return upgraded(saved_content(file, allow=allow))


def saved_content(file: Path, *, allow: frozenset[Option] = frozenset()) -> DictConfig:
    """The resolved configuration exactly as a run saved it; nothing in its strings is interpolated.

    Args:
        file: the run's ``config.yaml``.
        allow: options besides those of ``conf/`` whose classes it may name.

    Raises:
        UserError: it cannot be read, or names a class that is not allowed there.
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

    Interpolations are replaced with their values at the start of the run, since the environment may have changed.

    Args:
        file: the run's ``overrides.yaml``.
        config: the run's ``config.yaml``.
        config_dir: the ``--config-dir`` of this command line.

    Raises:
        UserError: they are not the settings of a run.
    """
    what = "not the settings of a run"
    settings = [renamed_setting(setting) for setting in read_yaml(file, of=list, what=what)]
    check_saved(settings, file=file, what=what, config_dir=config_dir, resolved=True)
    for setting in settings:
        if parse(setting)[0].key_or_group.partition(".")[0] in NOT_SAVED:
            raise UserError(what, file=file, hint=f"{setting} applies only to a single start and is not saved")
    if not any(map(_is_open, settings)):
        return settings
    settings = literal_settings(settings, renamed(read_yaml(config, of=dict, what="checkpoint damaged")))
    for setting in filter(_is_open, settings):
        raise UserError(
            what, file=file, hint=f"{setting}: {config.name} does not hold its value at the start of the run"
        )
    return settings


def literal_settings(settings: Iterable[str], values: dict[str, Any]) -> list[str]:
    """Replace interpolations in settings with their values, except where the configuration lacks the key.

    Args:
        settings: in Hydra's grammar.
        values: the resolved configuration as plain containers.
    """
    replaced = []
    for setting in settings:
        [override] = parse(setting)
        key = override.key_or_group
        if _is_open(setting) and not key.startswith(EXPANDED) and has_key(values, key):
            setting = f"{override.get_key_element()}={to_grammar(value_at(values, key))}"
        replaced.append(setting)
    return replaced


def _is_open(setting: str) -> bool:
    """Whether a setting contains an interpolation."""
    return any(_interpolations(parse(setting)[0]))


def settings_text(settings: Iterable[str]) -> str:
    """Settings as YAML that :func:`saved_settings` reads."""
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
    """Refuse settings that a file must not hold.

    Args:
        settings: in Hydra's grammar, literal values quoted.
        file: the file that holds them.
        what: beginning of the error message.
        config_dir: the ``--config-dir`` of this command line.
        several: a key may have several values.
        resolved: interpolations will be replaced with values later.

    Raises:
        UserError: a setting is refused; the message names it.
    """
    places = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    settings = list(settings)
    if sum(count_values(setting) for setting in settings if isinstance(setting, str)) > MOST:
        raise UserError(what, file=file, hint=f"more than {MOST:,} values")
    for setting in settings:
        problem = _problem(setting, places, several=several, resolved=resolved)
        if problem:
            raise UserError(what, file=file, hint=f"{setting}: {problem}")


def parse(setting: str) -> list[Override]:
    """Parse one setting as Hydra does."""
    return parse_settings([setting])


def _problem(setting: Any, places: list[Path], *, several: bool, resolved: bool) -> str:
    """What is wrong with a setting; "" if nothing is."""
    if not isinstance(setting, str) or setting.startswith("-") or "=" not in setting:
        return "settings are to_grammar key=value or group=option"
    try:
        [override] = parse(setting)
    except HydraException as error:
        return str(error).splitlines()[0]
    key = override.key_or_group
    if override.is_delete():
        return "a key cannot be removed"
    if override.package is not None or not re.fullmatch(r"[\w-]+([./][\w-]+)*", key):
        return "a key consists of names joined by dots"
    if re.split("[./]", key)[0] == "hydra":
        return "a file must not change Hydra's own settings"
    if override.is_sweep_override() and not several:
        return "more than one value"
    groups = [place for place in places if (place / key).is_dir()]
    if groups and (override.is_add() or override.is_force_add()) and places[0] in groups:
        return "options are chosen without +"
    if groups:
        unknown = [name for name in _choices(override) if not is_option(key, name, places)]
        return f"{unknown[0]} is not the name of an option" if unknown else ""
    if "/" in key:
        return "no such group; your own groups need --config-dir"
    foreign = [] if resolved else [text for text in _interpolations(override) if not _refers(text)]
    return "in a file, only interpolations of the form ${key} are allowed" if foreign else ""


def _refers(text: str) -> bool:
    return "${" not in REFERENCE.sub("", text) and "${hydra" not in text


def _choices(override: Override) -> list[Any]:
    """The options that an override of a group chooses."""
    if override.is_sweep_override():
        return list(override.sweep_iterator()) if override.is_discrete_sweep() else [str(override.value())]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _interpolations(override: Override) -> Iterator[str]:
    """The strings with interpolations in the value of an override."""
    for text in _strings(override._value):
        if re.search(r"(?<!\\)(\\\\)*\$\{", text):
            yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _strings(name)
            yield from _strings(child)
    elif isinstance(value, list | tuple | set):
        for child in value:
            yield from _strings(child)
    elif hasattr(value, "__dict__"):  # a sweep: look at its values and arguments
        yield from _strings(list(vars(value).values()))
