"""Environment variables: ranks set by torchrun, switches, ``LOG_LEVEL``, and variables that name a run."""

import os
from collections.abc import Mapping

from tinyllm.errors import UserError

RUN_NAMES = ("WANDB_RUN_ID", "WANDB_NAME")
"""Variables that name a wandb run. A program that starts several runs removes them, so that each run gets its own."""
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
"""Values of ``LOG_LEVEL``. DEBUG adds tracebacks, WARNING hides progress, ERROR hides notes too."""
SYNONYMS = {"": "INFO", "WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR", "NOTSET": "DEBUG"}
OFF = ("", "0", "false", "no", "off")


def is_on(value: str | None) -> bool:
    """Whether a switch is on: its value is set and is not empty, 0, false, no or off."""
    return value is not None and value.strip().lower() not in OFF


def log_level() -> str:
    """The value of ``LOG_LEVEL``, one of :data:`LEVELS`; INFO if it is not set.

    Raises:
        UserError: an unknown level.
    """
    text = os.environ.get("LOG_LEVEL", "").strip()
    level = SYNONYMS.get(text.upper(), text.upper())
    if level not in LEVELS:
        hint = f"one of {', '.join(LEVELS)}, or unset it"
        raise UserError("no such log level", key="LOG_LEVEL", value=text, hint=hint)
    return level


def shows(level: str) -> bool:
    """Whether output of this level is shown."""
    return LEVELS[level] >= LEVELS[log_level()]


def started_processes() -> int:
    """The number of processes started by torchrun; 0 if torchrun did not start this process.

    Batch systems may leave ``WORLD_SIZE=1`` in the environment. torchrun also sets ``LOCAL_RANK``.

    Raises:
        UserError: ``WORLD_SIZE`` is not a positive whole number.
    """
    size = _number("WORLD_SIZE", least=1)
    return 0 if size is None or (size == 1 and not os.environ.get("LOCAL_RANK")) else size


def rank() -> int:
    """The rank of this process under torchrun; 0 without it."""
    return (_number("RANK", least=0) or 0) if started_processes() else 0


def is_follower() -> bool:
    """Whether this is a rank other than 0, which leaves reporting a wrong command line to rank 0."""
    try:
        return rank() > 0
    except UserError:
        return False


def _number(name: str, *, least: int) -> int | None:
    """The value of a variable as a whole number; None if it is empty or not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        hint = f"must be a whole number ≥ {least}; if you are not using torchrun, unset it"
        raise UserError("invalid value", key=name, value=text, hint=hint)
    return int(text)


def without_run_names(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for one of several runs, without the variables that name a run."""
    return {name: value for name, value in environ.items() if name not in RUN_NAMES}
