"""Translate the exceptions of Hydra and OmegaConf into one-line errors that a user can act on."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from tinyllm.config.grammar import parsed
from tinyllm.config.option_files import groups
from tinyllm.config.schema import SCHEMAS, fields_of
from tinyllm.config.suggestions import listed, near, option_meant, unknown_key
from tinyllm.errors import UserError, one_line

KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
}
"""OmegaConf's type names in words."""
TAKES_PATH = {"dataset": "text", "tokenizer": "pretrained"}
"""The option of a group that reads a path."""

LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")
"""Launchers of optional packages."""


@contextmanager
def explain(overrides: Iterable[str]) -> Iterator[None]:
    """Turn exceptions of Hydra and OmegaConf inside the block into a :class:`UserError`.

    Args:
        overrides: the overrides being composed; they show what the user typed.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, list(overrides)) from error


def explained(error: Exception, overrides: list[str]) -> UserError:
    """The :class:`UserError` for an exception of Hydra or OmegaConf."""
    causes = (error.__cause__, error.__context__)
    cause = next((cause for cause in causes if isinstance(cause, OmegaConfBaseException)), error)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        cause = error  # this error knows the key; its cause does not
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsable(error)
    source = re.match(r"In '(\w+/.+)': ", str(error))
    if source and isinstance(cause, OmegaConfBaseException):
        return _in_file(cause, f"{source[1]}.yaml")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown(cause, overrides)
    if isinstance(cause, InterpolationResolutionError) and not isinstance(cause, ValidationError):
        return _unresolved(cause, overrides)
    if isinstance(cause, ValidationError) and cause.full_key:
        return _wrong_type(cause, overrides)
    if isinstance(error, ConfigCompositionException | HydraException):
        return _composition(_first_line(error), overrides)
    return UserError(_first_line(cause))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _in_file(error: OmegaConfBaseException, file: str) -> UserError:
    """An error in an option file, not on the command line."""
    group = file.partition("/")[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.full_key == group:
        hint = "its first line must be '# @package <node>', in an experiment '# @package _global_'"
        return UserError("the file does not say where its keys belong", file=file, hint=hint)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        full_location = _unknown(error, [])
    elif isinstance(error, ValidationError) and error.full_key:
        full_location = _wrong_type(error, [])
    else:
        return UserError(_first_line(error), file=file)
    return UserError(f"{full_location.what} {full_location.key}", file=file, hint=full_location.hint)


def _settings(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """Key and value of each setting as typed, the last one first."""
    settings = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith('"') and (quoted := parsed(value)) is not None:
            value = str(quoted.value())
        settings.append((key.lstrip("+~"), value))
    return settings[::-1]


def _typed(error: OmegaConfBaseException, overrides: list[str]) -> str:
    """The value on the command line of the key that an error is about."""
    return next((value for key, value in _settings(overrides) if key == error.full_key), "")


def _unresolved(error: OmegaConfBaseException, overrides: list[str]) -> UserError:
    """The error for a ``${…}`` without a value. OmegaConf seldom names the key that holds it, so it
    is looked up on the command line."""
    what, hint = _first_line(error), "${…} refers to another key; for literal text write \\${"
    interpolated = [(key, value) for key, value in _settings(overrides) if "${" in value]
    names = re.findall(r"'([^']+)'", what)
    matching = [(key, value) for key, value in interpolated if any(name in value for name in names)] or interpolated
    key, value = (error.full_key, _typed(error, overrides)) if error.full_key else next(iter(matching), (None, ""))
    variable = re.search(r"Environment variable '(.+?)' not found", what)
    if variable:
        what = f"the environment variable {variable[1]} is not set"
        hint = f"set it, or give a default: ${{oc.env:{variable[1]},<default>}}"
    return UserError(what, key=key or None, value=value, hint=hint)


def _missing_option(error: MissingConfigException) -> UserError:
    name = str(error.missing_cfg_file)
    prefix = "hydra/" * name.startswith("hydra/")  # Hydra's groups are one level deeper, and an option may be a path
    group, _, option = name.removeprefix(prefix).partition("/")
    group = prefix + group
    options = sorted(error.options or [])
    if group == "hydra/launcher" and option in LAUNCHERS:
        return UserError("not installed", key=group, value=option, hint="pip install 'tinyllm[sweep]'")
    similar = near(option, options)
    if group in TAKES_PATH and Path(option).exists():
        hint = f"for a path use {group}={TAKES_PATH[group]} {group}.path={option}"
        return UserError("no such option", key=group, value=option, hint=hint)
    likely = option_meant(group, option) or (similar[0] if similar else "")
    hint = f"did you mean {likely}? one of " if likely else "one of "
    return UserError("no such option", key=group, value=option, hint=hint + ", ".join(options))


def _unparsable(error: OverrideParseException) -> UserError:
    key, equals, value = error.override.partition("=")
    if not equals and Path(key).exists():
        hint = f"give the path to a key: run={key}, resume={key}, or dataset=text dataset.path={key}"
        return UserError("not a setting", file=key, hint=hint)
    if not equals:
        return UserError("not a setting", file=error.override, hint="settings are written key=value or group=option")
    if not re.fullmatch(r"[\w.@/+~-]+", key) or ".." in key:
        hint = "write names joined by dots, without a space before the ="
        return UserError("not a key", key=key, value=value, hint=hint)
    hint = f"quote it twice, for the shell and for Hydra: '{key}=\"…\"'"
    return UserError("value not understood", key=key, value=value, hint=hint)


def _unknown(error: ConfigKeyError | ConfigAttributeError, overrides: list[str]) -> UserError:
    path = str(error.full_key or error.key)
    below = (setting for setting in _settings(overrides) if setting[0] == path or setting[0].startswith(f"{path}."))
    key, value = next(below, (path, ""))
    node = error.parent_node
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    known = [name for name in known if not name.startswith("_") and name != "hydra"]
    known = known if "." in path else sorted({*known, *groups()})
    root: Any = OmegaConf.to_container(node._get_root()) if isinstance(node, DictConfig) else {}
    root.pop("hydra", None)
    owner = path.rpartition(".")[0] or "the configuration"
    return unknown_key(key, value, known, owner=owner, root=root, unknown=path)


def _wrong_type(error: ValidationError, overrides: list[str]) -> UserError:
    """The error for a value of a wrong type, with the allowed type from OmegaConf's message."""
    message, typed = _first_line(error), _typed(error, overrides)
    converted = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", message)
    value: str | None = typed
    if "not Optional" in message or "None" in message:
        value, hint = None, "must not be null"
    elif converted:
        kind = converted[1] or converted[2]
        hint = f"must be {KINDS.get(kind, kind)}"
    elif "is not a subclass of" in message:
        hint = _keys_below(str(error.full_key), typed)
    else:
        hint = one_line(message)
    return UserError("wrong type", key=error.full_key, value=value, hint=hint)


def _keys_below(path: str, value: str) -> str:
    """The keys to set instead of a node."""
    keys = [key for root in SCHEMAS.values() for key, _ in fields_of(root) if key.startswith(f"{path}.")]
    keys = list(dict.fromkeys(keys))
    if f"{path}.enabled" in keys and value.lower() in ("true", "false"):
        return f"did you mean {path}.enabled={value.lower()}? this is a group of keys: {', '.join(keys)}"
    return f"this is a group of keys; set one of its keys: {listed(keys)}"


def _composition(message: str, overrides: list[str]) -> UserError:
    match = re.search(r"Could not override '([^']+)'", message)
    override = next((override for override in overrides if match and match[1] in override), None)
    if override is None:
        return UserError(message)
    key, _, value = override.partition("=")
    return UserError("no such group or key", key=key, value=value, hint="--help lists the groups")
