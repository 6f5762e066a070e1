"""Hydra's and OmegaConf's exceptions as the one line a person can act on."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from tinyllm.errors import UserError, one_line


@contextmanager
def explain(overrides: Iterable[str]) -> Iterator[None]:
    """Turn what Hydra raises while composing ``overrides`` into a :class:`UserError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, list(overrides)) from error


def explained(error: Exception, overrides: list[str]) -> UserError:
    """The :class:`UserError` for an exception of Hydra or OmegaConf."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsable(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown(cause, overrides)
    if isinstance(cause, ValidationError) and cause.full_key:
        value, hint = _typed(_first_line(cause))
        return UserError("wrong type", key=cause.full_key, value=value, hint=hint)
    if isinstance(error, ConfigCompositionException | HydraException):
        return UserError(_first_line(error), hint=_composition_hint(_first_line(error), overrides))
    return UserError(_first_line(cause))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _missing_option(error: MissingConfigException) -> UserError:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    near = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return UserError("no such option", key=group, value=option, hint=f"{hint}one of {', '.join(options)}")


def _unparsable(error: OverrideParseException) -> UserError:
    key = error.override.partition("=")[0]
    if "=" not in error.override:
        return UserError(
            f"not a setting: {error.override}", hint="settings are written key=value or group=option"
        )
    hint = f"quote it twice, for the shell and for Hydra: '{key}=\"…\"'"
    return UserError("value not understood", key=key, value=error.override.partition("=")[2], hint=hint)


def _unknown(error: ConfigKeyError | ConfigAttributeError, overrides: list[str]) -> UserError:
    path = str(error.full_key or error.key)
    override = next(
        (one for one in overrides if one.partition("=")[0].lstrip("+~") in (path,) or one.startswith(path)),
        "",
    )
    asked = override.partition("=")[0].lstrip("+~") or path
    node = error.parent_node
    known = sorted(str(name) for name in node) if isinstance(node, DictConfig) else []
    known = [name for name in known if not name.startswith("_") and name != "hydra"]
    prefix, _, name = path.rpartition(".")
    near = difflib.get_close_matches(name, known, n=3)
    full = [f"{prefix}.{one}" if prefix else one for one in near]
    hint = (
        f"did you mean {' or '.join(full)}?"
        if near
        else f"{prefix or 'the configuration'} takes {', '.join(known)}"
    )
    return UserError("unknown key", file=override or asked, hint=hint)


def _typed(message: str) -> tuple[str, str]:
    """The value and what is allowed, out of OmegaConf's sentence."""
    found = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", message)
    words = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}
    if found:
        return found[1], f"must be {words.get(found[2], found[2])}"
    if "not Optional" in message or "None" in message:
        return "null", "a value is needed"
    return "", one_line(message)


def _composition_hint(message: str, overrides: list[str]) -> str:
    found = re.search(r"Could not override '([^']+)'", message)
    if found:
        meant = ", ".join(one for one in overrides if found[1] in one)
        return f"no group or key of that name; see --help ({meant})"
    return ""
