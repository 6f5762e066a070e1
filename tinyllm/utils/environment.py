"""Environment variables that more than one part reads: the launcher, switches, verbosity, what names one run."""

import os
from collections.abc import Mapping

from tinyllm.errors import UserError

OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME")
"""Variables that name one run. A program that starts several does not pass them on: they would share a record."""
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
"""What ``LOG_LEVEL`` may be. DEBUG adds tracebacks, WARNING leaves out progress, ERROR leaves out notes too."""
SYNONYMS = {"": "INFO", "WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR", "NOTSET": "DEBUG"}
OFF = ("", "0", "false", "no", "off")


def is_on(value: str | None) -> bool:
    """Whether a switch in the environment is on: set, and neither empty nor 0, false, no or off."""
    return value is not None and value.strip().lower() not in OFF


def log_level() -> str:
    """The verbosity that ``LOG_LEVEL`` asks for, one of :data:`LEVELS`; INFO if it is not set.

    Raises:
        UserError: it is none of them.
    """
    asked = os.environ.get("LOG_LEVEL", "").strip()
    level = SYNONYMS.get(asked.upper(), asked.upper())
    if level not in LEVELS:
        hint = f"one of {', '.join(LEVELS)}, or unset it"
        raise UserError("no such level", key="LOG_LEVEL", value=asked, hint=hint)
    return level


def shows(level: str) -> bool:
    """Whether what has this level is shown."""
    return LEVELS[level] >= LEVELS[log_level()]


def started_processes() -> int:
    """How many processes torchrun started; 0: this one was not started by it.

    A ``WORLD_SIZE`` of 1 that something else left in the environment starts nothing: torchrun sets ``LOCAL_RANK`` too.

    Raises:
        UserError: ``WORLD_SIZE`` is no number of processes.
    """
    size = _number("WORLD_SIZE", least=1)
    return 0 if size is None or (size == 1 and not os.environ.get("LOCAL_RANK")) else size


def rank() -> int:
    """This process's place among those that torchrun started; 0 without it."""
    return (_number("RANK", least=0) or 0) if started_processes() else 0


def is_follower() -> bool:
    """Whether another rank tells what is wrong with a command line that all ranks were given."""
    try:
        return rank() > 0
    except UserError:
        return False


def _number(name: str, *, least: int) -> int | None:
    """The whole number in a variable; None where it is empty or not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        hint = f"torchrun sets it to a whole number, at least {least}; without torchrun unset it"
        raise UserError("not what a launcher sets", key=name, value=text, hint=hint)
    return int(text)


def for_several(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of several runs: without what names one run."""
    return {name: value for name, value in environ.items() if name not in OF_ONE_RUN}
