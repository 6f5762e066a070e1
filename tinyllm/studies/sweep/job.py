"""The jobs of a sweep: what identifies one, and the grid of jobs that a command line describes."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override

from tinyllm.config.grammar import key_of
from tinyllm.config.start_keys import START_KEYS
from tinyllm.errors import UserError
from tinyllm.utils.nested import is_within

LONGEST_NAME = 80
"""Characters of a run directory's name that describe the job."""
LONGEST_NUMBER = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the command line describes it."""

    overrides: Sequence[str]
    """All its settings, in Hydra's grammar."""
    swept: Sequence[str]
    """Those that vary between the jobs."""

    @property
    def identity(self) -> frozenset[str]:
        """Equal for two jobs with the same settings in any order.

        A key in ``START_KEYS`` counts only where it is swept: a time limit for all jobs may change from start to start,
        but two time limits on one command line are two jobs.
        """
        return without_start_keys(self.overrides) | frozenset(self.swept)


def without_start_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The settings without those of a single start, as a set: their order does not matter."""
    return frozenset(override for override in overrides if not is_within(key_of(override), START_KEYS))


def expand(overrides: Iterable[Override]) -> list[Job]:
    """The jobs of a grid: every combination of values, each combination once.

    Raises:
        UserError: a range that cannot be enumerated.
    """
    axes, is_swept = [], []
    for override in overrides:
        key, swept = override.get_key_element(), override.is_sweep_override()
        if swept and not override.is_discrete_sweep():
            value = str(override.input_line).partition("=")[2]
            hint = "list the values, or search with hydra/sweeper=search"
            raise UserError("a grid cannot enumerate a continuous range", key=key, value=value, hint=hint)
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        axes.append([f"{key}={value}" for value in values])
        is_swept.append(swept)
    # A dictionary keeps the first of equal combinations, as attn=mha,mha gives.
    jobs = {
        settings: Job(overrides=settings, swept=list(itertools.compress(settings, is_swept)))
        for settings in itertools.product(*axes)
    }
    return list(jobs.values())


def short_setting(setting: str) -> str:
    """A setting with a long number rounded to four digits, for display."""
    key, equals, value = setting.partition("=")
    with contextlib.suppress(ValueError):
        if len(value) > LONGEST_NUMBER:
            value = f"{float(value):.4g}"
    return f"{key}{equals}{value}"


def short_name(settings: Iterable[str]) -> str:
    """Settings as part of a file name: ``attn-mha_lr-0.001``."""
    parts = []
    for setting in settings:
        key, _, value = short_setting(setting).partition("=")
        parts.append(f"{key.lstrip('+').rpartition('.')[2]}-{os.path.basename(value.rstrip('/'))}")
    safe = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts)
    return safe[:LONGEST_NAME].rstrip("-_.")
