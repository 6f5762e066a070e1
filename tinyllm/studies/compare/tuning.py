"""Tuning: every arm gets the same number of trials for a key, before the runs that count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.quoting import quote_literals
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import parse_overrides
from tinyllm.studies.compare.composed_arms import ComposedArm, without_keys
from tinyllm.studies.compare.run_pool import PooledRun
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job_record import FINISHED

SEED_OFFSET = 1_000_003
"""Added to the seed for the trials, so that no arm is tuned on a seed of the comparison."""
SPAN = 10.0
"""A key without values is searched from a tenth of the arm's own value to ten times that."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The key to tune.

    Args:
        key: the key.
        values: values or interval to choose from, in Hydra's grammar; None: an interval around the arm's own value.
        trials: number of trials of each arm.
    """

    key: str
    values: str | None
    trials: int

    def sweep_setting(self, cfg: DictConfig) -> str:
        """The key with the values to choose from, for one arm.

        Raises:
            UserError: the key has no positive number to search around.
        """
        if self.values is not None:
            return f"{self.key}={self.values}"
        own = OmegaConf.select(cfg, self.key)
        if isinstance(own, bool) or not isinstance(own, int | float) or not own > 0:
            hint = f"{self.key}={own} is not a positive number; give values, e.g. tune='{self.key}=1e-3,3e-3'"
            raise UserError("nothing to search around", key="tune", value=self.key, hint=hint)
        return f"{self.key}=tag(log,interval({own / SPAN:.6g},{own * SPAN:.6g}))"

    def sweep(self, arm: ComposedArm, path: Path, flags: Sequence[str]) -> "TuningSweep":
        """The sweep that tries the values for an arm.

        Args:
            path: the directory of the sweep.
        """
        [override] = parse_overrides([self.sweep_setting(arm.cfg)])
        settings = without_keys(arm.overrides, (self.key, "seed"))
        settings += [f"seed={arm.cfg.seed + SEED_OFFSET}", str(override.input_line)]
        if not is_grid(override):
            settings += ["hydra/sweeper=search", f"hydra.sweeper.n_trials={self.trials}"]
            settings += [f"hydra.sweeper.seed={arm.cfg.seed}"]
        return TuningSweep(label=arm.name, path=path, settings=settings, flags=["-m", *flags])


class TuningSweep(PooledRun):
    """A sweep in place of a single run; started again, it continues."""

    @property
    def command(self) -> list[str]:
        return [*self.flags, *self.settings, *quote_literals([f"hydra.sweep.dir={self.path}"])]

    @property
    def arguments(self) -> list[str]:
        return self.command


def parse_tuning(text: str | None, trials: int) -> Tuning | None:
    """The meaning of the key ``tune``.

    Args:
        trials: number of trials where the values cannot be enumerated.

    Raises:
        UserError: neither a key nor a key with several values.
    """
    if text is None:
        return None
    key, equals, values = text.partition("=")
    if equals:
        [override] = parse_overrides([text])
        if not override.is_sweep_override():
            hint = f"give several values, e.g. tune='{key}=1e-3,3e-3', or the key alone"
            raise UserError("nothing to choose from", key="tune", value=text, hint=hint)
        if is_grid(override):
            trials = len(list(override.sweep_iterator()))
    return Tuning(key=key, values=values if equals else None, trials=trials)


def is_grid(override: Override) -> bool:
    """Whether the values can be enumerated, so that each is tried."""
    return override.is_discrete_sweep()


def trials_in(path: Path, key: str) -> list[dict[str, Any]]:
    """The trials in a sweep's directory: the value of the key, and the best value of the metric that the
    objective selects by (None: failed)."""
    trials = []
    for record in SweepDir(path).records():
        swept = dict(setting.split("=", 1) for setting in record.swept)
        succeeded = record.status == FINISHED and record.val_loss is not None and math.isfinite(record.val_loss)
        trials.append({key: _number(swept[key]), "value": record.val_loss if succeeded else None})
    # Numbers as zero-padded text, so that they sort by value and may stand beside names.
    return sorted(trials, key=lambda trial: trial[key] if isinstance(trial[key], str) else f"{trial[key]:030.15f}")


def best_value(trials: Sequence[dict[str, Any]], key: str, *, lower_is_better: bool = True) -> Any:
    """The value of the key with the best result; None if all trials failed."""
    succeeded = [trial for trial in trials if trial["value"] is not None]
    sign = 1 if lower_is_better else -1
    return min(succeeded, key=lambda trial: sign * float(trial["value"]))[key] if succeeded else None


def is_at_edge(trials: Sequence[dict[str, Any]], key: str, value: Any) -> bool:
    """Whether a number is the smallest or largest of several that were tried."""
    numbers = sorted(trial[key] for trial in trials if isinstance(trial[key], float))
    return len(numbers) > 1 and value in (numbers[0], numbers[-1])


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
