"""Libraries imported at the moment of use, because they are optional or heavy."""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from tinyllm.errors import UserError


def is_installed(name: str) -> bool:
    """Whether a library can be imported here; it is not imported."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder, such as wandb's ./wandb, has no origin


def library(name: str, *, hint: str, **where: Any) -> ModuleType:
    """Import a library that only some users install, such as ``wandb`` or ``optuna.samplers``, or that only some
    moments need, such as ``matplotlib.figure``.

    For classes and functions that must be importable without the library. Never for tinyllm's own modules.

    Args:
        hint: how to install it.
        where: ``key`` and ``value`` of the setting that needs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} cannot be imported ({error})", hint=hint, **where) from error
