"""Read the command line before Hydra does, and report errors in one line instead of Hydra's usage text."""

import argparse
import difflib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override

from tinyllm.config.grammar import parse_settings
from tinyllm.config.hydra_errors import TAKES_PATH, explain
from tinyllm.config.option_files import check_file, conf_dir, is_option, side_by_side
from tinyllm.config.quoting import quote_literals
from tinyllm.config.suggestions import meant_by, near, option_meant
from tinyllm.errors import UserError

UNSUPPORTED_FLAGS = ("config_path", "config_name", "experimental_rerun")
"""Hydra's flags that would replace our configuration with an unchecked one, or unpickle a file."""
SWEEP_KEYS = ("hydra.sweep.dir", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
"""Hydra settings for a multirun."""
SUPPORTED_HYDRA_KEYS = (*SWEEP_KEYS, "hydra.searchpath", "hydra.job.env_set", "hydra.job.env_copy", "hydra.callbacks")
"""Hydra settings that have an effect here."""
REPLACEMENTS = {
    "hydra.run.dir": "use run.dir",
    "hydra.sweep.subdir": (
        "jobs are named by their number and what varies; hydra.sweep.dir is their common parent directory"
    ),
    "hydra.mode": "-m runs every combination of the values",
    "hydra.job.chdir": "programs stay in the directory in which they are started",
    "hydra.output_subdir": "the configuration is saved as config.yaml in the run directory",
    "hydra.verbose": "the environment variable LOG_LEVEL=DEBUG shows tracebacks",
}
"""Hydra settings that have no effect here, with what to use instead."""
SET_PER_JOB = {
    "run.dir": "each job has its own directory below hydra.sweep.dir; leave it out",
    "run.name": "jobs are named by their number and what varies; leave it out",
    "resume": "to resume a sweep, run the same command with hydra.sweep.dir=<the sweep's directory>",
}
"""Keys that a sweep sets for each job, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line, separated into flags and settings."""

    flags: list[str] = field(default_factory=list)
    """Hydra's flags with their values."""
    settings: list[str] = field(default_factory=list)
    """Settings and choices in Hydra's grammar. Literal values are quoted, except in a multirun."""
    multirun: bool = False
    config_dir: str | None = None


def read(arguments: Sequence[str], *, several: bool = False) -> CommandLine:
    """Read a command line and check its form. Flags may stand anywhere.

    Args:
        arguments: the command line without the program's name.
        several: a key may have several values without a multirun.

    Raises:
        UserError: a flag does not exist, is not supported or lacks its value; also see :func:`check_override_grammar`.
    """
    parser = get_args_parser()
    flags, settings = _separate(arguments, parser)
    _refuse_foreign_flags(arguments, parser)
    parser.error = _refuse  # type: ignore[method-assign]
    known, unknown = parser.parse_known_args(flags)
    if unknown:
        raise _unknown_flag(unknown[0], parser)
    for name in UNSUPPORTED_FLAGS:
        if getattr(known, name) is not None:
            hint = "add your own option files with --config-dir=<directory>"
            raise UserError(
                "flag not supported", key=f"--{name.replace('_', '-')}", value=getattr(known, name), hint=hint
            )
    if known.config_dir is not None and not Path(known.config_dir).is_dir():
        hint = "a directory with group folders, e.g. attn/"
        raise UserError("no such directory", key="--config-dir", value=known.config_dir, hint=hint)
    if several and known.multirun:
        raise UserError(
            "flag not supported",
            file="-m",
            hint="it is not needed here: giving a key several values already creates arms",
        )
    if not known.multirun:
        _refuse_sweep_keys(settings, hint="leave it out" if several else "add -m, or leave it out")
    settings = quote_literals(settings, several=several, multirun=bool(known.multirun))
    check_override_grammar(
        settings, several=several or known.multirun, directories=[known.config_dir] if known.config_dir else []
    )
    return CommandLine(flags=flags, settings=settings, multirun=known.multirun, config_dir=known.config_dir)


def check_override_grammar(
    settings: Iterable[str], *, several: bool = False, directories: Iterable[str | Path] = ()
) -> None:
    """Refuse overrides whose form Hydra accepts and tinyllm does not support.

    Args:
        settings: in Hydra's grammar, literal values quoted.
        several: a key may have several values.
        directories: directories of option files besides ``conf/``.

    Raises:
        UserError: not ``key=value``, more than one value, a key removed with ``~``, a group without an option.
    """
    settings = list(settings)
    with explain(settings):
        parsed = parse_settings(settings)
    places = [conf_dir(), *map(Path, directories)]
    for override in parsed:
        _check_setting(override, several, places)


def within_hydra(key: str) -> bool:
    """Whether a key or group is one of Hydra's own."""
    return re.split(r"[./@]", key, maxsplit=1)[0] == "hydra"


def _refuse_sweep_keys(settings: Iterable[str], *, hint: str) -> None:
    """Refuse settings for a multirun in a single run.

    Raises:
        UserError: a setting only has an effect in a multirun.
    """
    for setting in settings:
        key, _, value = setting.partition("=")
        if key.lstrip("+~").startswith(SWEEP_KEYS):
            raise UserError("only has an effect in a multirun", key=key.lstrip("+~"), value=value, hint=hint)


def _separate(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Separate flags and their values from settings: argparse does not accept flags between positional ones."""
    flags: list[str] = []
    settings: list[str] = []
    takes_value = may_take_value = False
    for argument in arguments:
        if argument.startswith("-") and not takes_value:
            flags.append(argument)
            action = parser._option_string_actions.get(argument)
            takes_value = action is not None and action.nargs is None
            may_take_value = action is not None and action.nargs == "?"
        elif takes_value or (may_take_value and "=" not in argument):
            flags.append(argument)
            takes_value = may_take_value = False
        else:
            settings.append(argument)
            may_take_value = False
    return flags, settings


def _refuse(message: str) -> NoReturn:
    """Replaces argparse's ``error``, which prints the usage, where a flag has a wrong value or none."""
    hint = "--help explains how to write settings, --hydra-help lists the flags"
    raise UserError("flag not understood", file=message.removeprefix("argument "), hint=hint)


def _unknown_flag(flag: str, parser: argparse.ArgumentParser) -> UserError:
    name, _, value = flag.partition("=")
    near = difflib.get_close_matches(name, parser._option_string_actions, n=1, cutoff=0.75)
    setting = f"{name.lstrip('-').replace('-', '_')}={value or '…'}"
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"settings are written without dashes, e.g. {setting} if that is a key; see --help"
    )
    return UserError("no such flag", file=flag, hint=hint)


def _refuse_foreign_flags(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuse flags of other tools. argparse would take some for abbreviations of Hydra's flags.

    Raises:
        UserError: with our name for the flag.
    """
    for flag, following in itertools.pairwise([*arguments, ""]):
        name, _, value = flag.partition("=")
        if not name.startswith("--") or name in parser._option_string_actions:
            continue
        value = value or ("" if following.startswith("-") or "=" in following else following)
        our_name = meant_by(name, value)
        if our_name:
            hint = (
                our_name
                if " " in our_name and "=<" in our_name
                else f"use {our_name} (settings are written without dashes)"
            )
            raise UserError("no such flag", file=flag, hint=hint)


def _check_setting(override: Override, several: bool, places: list[Path]) -> None:
    key, text = override.key_or_group, str(override.input_line)
    typed = text.partition("=")[2]
    if override.is_delete():
        hint = "set a different value; a group that can be off has the option none"
        raise UserError("a key cannot be removed", file=text, hint=hint)
    if not key:
        raise UserError("a setting without a key", file=text, hint="settings are written key=value or group=option")
    if within_hydra(key) and not key.startswith(SUPPORTED_HYDRA_KEYS):
        hint = REPLACEMENTS.get(key, f"supported Hydra settings: {', '.join(SUPPORTED_HYDRA_KEYS)}")
        raise UserError("this Hydra setting has no effect here", key=key, value=typed, hint=hint)
    in_group = any((place / key).is_dir() for place in places)
    if override.is_sweep_override():
        for option in override.sweep_string_iterator() if several and in_group and override.is_discrete_sweep() else ():
            _check_option(key, option.strip("'\""), places)
        if not several:
            hint = f"add -m to run once per value; to pass a string that contains commas, write '{key}=\"{typed}\"'"
            raise UserError("more than one value", key=key, value=typed, hint=hint)
        return
    groups = [place / key for place in places if (place / key).is_dir()]
    value = override.value()
    if isinstance(value, str) and in_group:
        _check_option(key, value, places)
    if not groups or isinstance(value, str):
        return
    options = sorted({file.stem for group in groups for file in group.glob("*.yaml")})
    if isinstance(value, list) and side_by_side(groups):
        _check_options(key, [str(option) for option in value], options)  # Hydra's error for a list is less specific
        for option in value:
            _check_option(key, str(option), places)
        return
    likely = option_meant(key, typed)
    hint = (f"did you mean {likely}? " if likely else "") + f"one of {', '.join(options)}; or leave it out"
    raise UserError("a group takes one option", key=key, value=typed, hint=hint)


def _check_option(group: str, name: str, places: list[Path]) -> None:
    if not is_option(group, name, places):
        hint = f"an option is a name, not a path: put the file into DIR/{group}/ and add --config-dir=DIR"
        if group in TAKES_PATH and os.path.exists(name):
            hint = f"for a path use {group}={TAKES_PATH[group]} {group}.path={name}"
        raise UserError("no such option", key=group, value=name, hint=hint)
    for place in places:
        file = place / group / f"{name}.yaml"
        if place != conf_dir() and file.is_file():
            check_file(file, place)


def _check_options(group: str, chosen: list[str], options: list[str]) -> None:
    if not chosen:
        raise UserError("no option is chosen", key=group, value="[]", hint=f"choose from {', '.join(options)}")
    for name in chosen:
        if name not in options:
            similar = near(name, options)
            hint = (f"did you mean {similar[0]}? " if similar else "") + f"choose from {', '.join(options)}"
            raise UserError("no such option", key=group, value=name, hint=hint)


def sweep_overrides(arguments: Iterable[str]) -> list[Override]:
    """Parse the settings of a multirun. If a key is given more than once, the last setting counts.

    Raises:
        UserError: a setting is for a key that the sweep sets for each job.
    """
    arguments = list(arguments)
    with explain(arguments):
        parsed = parse_settings(arguments)
    for override in parsed:
        hint = SET_PER_JOB.get(override.key_or_group)
        if hint:
            typed = str(override.input_line).partition("=")[2]
            raise UserError("not allowed in a multirun", key=override.key_or_group, value=typed, hint=hint)
    return list({override.get_key_element(): override for override in parsed}.values())
