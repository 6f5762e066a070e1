"""A metric that finished runs are evaluated for: the same problems, or the same opponent, for all arms."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.config.compose import compose
from tinyllm.config.grammar import words
from tinyllm.config.targets import Option
from tinyllm.errors import UserError, setting
from tinyllm.programs.evaluate import evaluate_run
from tinyllm.studies.compare.measurements import Measurements

VALIDATION = "validation"
EVALUATED = ("task/", "win/")
"""Metrics that runs do not log: their beginnings."""
DEFAULT = "dataset=tasks"
"""What is evaluated if the user does not say."""


@dataclass(frozen=True)
class SharedEvaluation:
    """What every run is evaluated on after training, by the program ``evaluate``.

    Attributes:
        text: its settings, such as ``dataset=tasks dataset.n_val=400``.
        metric: the figure that counts.
    """

    text: str
    metric: str

    def check(self, *, config_dir: str | None) -> None:
        """Refuse settings that do not compose.

        Raises:
            UserError: they do not.
        """
        try:
            self._compose("checkpoint=last", config_dir=config_dir)
        except UserError as error:
            place = setting(error.key, error.value) if error.key else str(error.file or "")
            hint = ": ".join(filter(None, (place, error.hint)))
            raise UserError(error.what, key=VALIDATION, value=self.text, hint=hint) from error

    def value(self, run: Path, measured: Measurements, *, config_dir: str | None, allow: frozenset[Option]) -> float:
        """The metric of a finished run's last checkpoint, measured once per study.

        Raises:
            UserError: the evaluation gives no such metric.
        """
        kind = f"evaluation: {self.text}"
        if (found := measured.get(kind, run.name)) is None:
            cfg = self._compose(f"run={run}", "checkpoint=last", config_dir=config_dir)
            typed = {word.partition("=")[0] for word in words(self.text)}
            result = evaluate_run(cfg, str(run), allow=allow, typed=typed)
            found = {name: value for name, value in result.items() if _is_figure(value) and "/" in name}
            measured.put(kind, run.name, found)
        if self.metric not in found:
            hint = f"it gives {', '.join(found)}"
            raise UserError("the evaluation has no such metric", key="metric", value=self.metric, hint=hint)
        return float(found[self.metric])

    def _compose(self, *more: str, config_dir: str | None) -> Any:
        return compose(*words(self.text), *more, program="evaluate", config_dir=config_dir)


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
