"""Which checkpoints belong to a run as it stands: a resume from an older one abandons those of later steps."""

import math
from pathlib import Path

from tinyllm.runs.checkpoint import name_of, set_hint, steps_in
from tinyllm.runs.metrics_log import Record

Best = tuple[float | None, int | None]
"""The best value of the selecting metric and its step; None if nothing was evaluated."""


def later_than(directory: Path, step: int) -> list[str]:
    """Names of the checkpoints that going on from ``step`` will remove."""
    return [name_of(one) for one in steps_in(directory) if one > step]


def follow(
    directory: Path, records: list[Record], *, step: int, best: Best, metric: str = "val/loss", lower: bool = True
) -> Best:
    """Point ``best`` and ``last`` to checkpoints of the steps up to ``step``, and return the best of them.

    The best value of the resumed state may be that of a checkpoint that is not there: an abandoned line had a better
    one and removed it, or the run goes on in another directory. The best is then that of a checkpoint which is there.
    Writes; only for the process that holds the run's lock.

    Args:
        directory: of the checkpoints.
        records: of ``metrics.jsonl``.
        step: where training goes on.
        best: what the resumed state says.
        metric, lower: the metric that selects the best checkpoint, and whether lower values of it are better.
    """
    there = [one for one in steps_in(directory) if one <= step]
    if best[1] not in there:
        found = {one["step"]: one.get(metric) for one in records if one["step"] in there}
        values = [(value, one) for one, value in found.items() if isinstance(value, float) and math.isfinite(value)]
        best = min(values, key=lambda pair: (pair[0] if lower else -pair[0], pair[1]), default=(None, None))
    for hint, target in {"best": best[1], "last": max(there, default=None)}.items():
        if target is None:
            (directory / hint).unlink(missing_ok=True)
        else:
            set_hint(directory, hint, target)
    return best
