"""The same number of trials for every arm, before the seeds that count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.grammar import key_of
from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import parse
from tinyllm.studies.compare.run_pool import Job
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job_record import FINISHED

FIRST_SEED = 1_000_003
"""What is added to the seed of the trials, so that none of the seeds that count is tuned on."""
SPAN = 10.0
"""A key without values is searched from the arm's own value divided by this to the value times this."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned.

    Args:
        key: the key.
        values: what to choose from, in Hydra's grammar; None: around the arm's own value.
        trials: of each arm, where the values are an interval.
    """

    key: str
    values: str | None
    trials: int

    def sweep_of(self, cfg: DictConfig) -> str:
        """The key with what to choose from, for an arm.

        Raises:
            UserError: the key has no number to search around.
        """
        if self.values is not None:
            return f"{self.key}={self.values}"
        own = OmegaConf.select(cfg, self.key)
        if isinstance(own, bool) or not isinstance(own, int | float) or not own > 0:
            hint = f"{self.key}={own} is no positive number; give values, e.g. tune='{self.key}=1e-3,3e-3'"
            raise UserError("nothing to search around", key="tune", value=self.key, hint=hint)
        return f"{self.key}=tag(log,interval({own / SPAN:.6g},{own * SPAN:.6g}))"

    def job(self, label: str, path: Path, overrides: Sequence[str], cfg: DictConfig, flags: Sequence[str]) -> Job:
        """The multirun that tries the values for an arm.

        Args:
            overrides: of the arm, in Hydra's grammar.
            cfg: the arm's configuration.
        """
        [override] = parse([self.sweep_of(cfg)])
        mine = [one for one in overrides if key_of(one) not in (self.key, "seed")]
        settings = [*mine, f"seed={cfg.seed + FIRST_SEED}", str(override.input_line)]
        if not is_grid(override):
            settings += ["hydra/sweeper=search", f"hydra.sweeper.n_trials={self.trials}"]
            settings += [f"hydra.sweeper.seed={cfg.seed}"]
        return Sweep(label=label, path=path, settings=settings, flags=["-m", *flags])


class Sweep(Job):
    """A multirun in a directory of its own, which goes on where it was stopped."""

    @property
    def arguments(self) -> list[str]:
        return [*self.flags, *self.settings, *quote_literals([f"hydra.sweep.dir={self.path}"])]

    @property
    def command(self) -> list[str]:
        return self.arguments


def asked(text: str | None, trials: int) -> Tuning | None:
    """What ``tune`` asks for.

    Raises:
        UserError: it is not a key, or not a key with several values.
    """
    if text is None:
        return None
    key, equals, values = text.partition("=")
    if equals:
        [override] = parse([text])
        if not override.is_sweep_override():
            hint = f"several values, e.g. tune='{key}=1e-3,3e-3', or the key alone"
            raise UserError("nothing to choose from", key="tune", value=text, hint=hint)
        if is_grid(override):
            trials = len(list(override.sweep_iterator()))
    return Tuning(key=key, values=values if equals else None, trials=trials)


def is_grid(override: Override) -> bool:
    """Whether every value can be tried."""
    return override.is_discrete_sweep()


def trials_of(path: Path, key: str) -> list[dict[str, Any]]:
    """What was tried: the value of the key, and the lowest validation loss, None where a trial failed."""
    tried = []
    for record in SweepDir(path).all():
        swept = dict(one.split("=", 1) for one in record.swept)
        good = record.status == FINISHED and record.val_loss is not None and math.isfinite(record.val_loss)
        tried.append({key: _number(swept[key]), "value": record.val_loss if good else None})
    return sorted(tried, key=lambda one: str(one[key]) if isinstance(one[key], str) else f"{one[key]:030.15f}")


def best_of(trials: Sequence[dict[str, Any]], key: str) -> Any:
    """The value with the lowest validation loss; None when all trials failed."""
    worked = [one for one in trials if one["value"] is not None]
    return min(worked, key=lambda one: float(one["value"]))[key] if worked else None


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
