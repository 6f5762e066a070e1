"""The checkpoints of a resumed run: resuming from an older checkpoint abandons those of later steps."""

import math
from pathlib import Path

from tinyllm.runs.checkpoint import name_of, set_hint, steps_in
from tinyllm.runs.metrics_log import Record

Best = tuple[float | None, int | None]
"""The best value of the selecting metric and its step; None before the first evaluation."""


def later_than(directory: Path, step: int) -> list[str]:
    """The names of the checkpoints after ``step``, which a run resumed there will remove."""
    return [name_of(saved) for saved in steps_in(directory) if saved > step]


def repair_hints(
    directory: Path, records: list[Record], *, step: int, best: Best, metric: str = "val/loss", lower: bool = True
) -> Best:
    """Point ``best`` and ``last`` to checkpoints up to ``step``. Call it only in the process that holds the run's lock.

    The best checkpoint of the resumed state may be gone: an abandoned branch had a better one and removed it, or the
    run continues in a different directory. The best of the remaining checkpoints then takes its place.

    Args:
        directory: the run's ``checkpoints`` folder.
        records: the records of ``metrics.jsonl``.
        step: the step where training continues.
        best: the best value and its step according to the resumed state.
        metric, lower: the metric that selects the best checkpoint, and whether lower values are better.

    Returns:
        The best value among the remaining checkpoints, and its step.
    """
    steps = [saved for saved in steps_in(directory) if saved <= step]
    if best[1] not in steps:
        found = {record["step"]: record.get(metric) for record in records if record["step"] in steps}
        values = [(value, saved) for saved, value in found.items() if isinstance(value, float) and math.isfinite(value)]
        best = min(values, key=lambda pair: (pair[0] if lower else -pair[0], pair[1]), default=(None, None))
    for hint, target in {"best": best[1], "last": max(steps, default=None)}.items():
        if target is None:
            (directory / hint).unlink(missing_ok=True)
        else:
            set_hint(directory, hint, target)
    return best
