"""What the trials of each arm say about how it was tuned."""

import math

from tinyllm.studies.compare.results import Arm


def tried(arm: Arm, key: str) -> list[tuple[float, float]]:
    """Values of a key that are numbers with the metric they gave, in order; failed trials left out."""
    return sorted(
        (float(trial[key]), float(trial["value"]))
        for trial in arm.trials
        if _number(trial.get(key)) and _number(trial.get("value"))
    )


def at_the_edge(arm: Arm) -> list[str]:
    """Keys whose chosen value is the least or the greatest that was tried: better ones may lie beyond."""
    found = []
    for key, value in arm.tuned.items():
        values = {float(trial[key]) for trial in arm.trials if _number(trial.get(key))}
        if len(values) > 1 and _number(value) and float(value) in (min(values), max(values)):
            found.append(key)
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
