"""The metric in the course of training: one curve for each arm, with what its seeds spread over."""

import statistics
from dataclasses import dataclass

from tinyllm.studies.report.summary import ArmSummary


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A point for each evaluation that every finished seed of an arm has."""

    steps: list[int]
    x: list[float]
    """The mean over the seeds; only seconds differ between them."""
    mean: list[float]
    low: list[float]
    """The least over the seeds."""
    high: list[float]
    """The greatest over the seeds."""
    seeds: int


def curve(one: ArmSummary, *, axis: str, metric: str) -> Curve | None:
    """An arm's curve over tokens, flops or seconds; None without a finished run that recorded both."""
    seeds = [_points(run.records, axis, metric) for run in one.finished]
    seeds = [points for points in seeds if points]
    if not seeds:
        return None
    steps = sorted(set.intersection(*(set(points) for points in seeds)))
    if not steps:
        return None
    ys = [[points[step][1] for points in seeds] for step in steps]
    return Curve(
        steps=steps,
        x=[statistics.fmean(points[step][0] for points in seeds) for step in steps],
        mean=[statistics.fmean(values) for values in ys],
        low=[min(values) for values in ys],
        high=[max(values) for values in ys],
        seeds=len(seeds),
    )


def _points(records: list[dict[str, float]], axis: str, metric: str) -> dict[int, tuple[float, float]]:
    """Where a run stood and what it measured, by step; of what was measured twice the later counts."""
    found = {}
    for record in records:
        if record.get(axis) is not None and record.get(metric) is not None:
            found[int(record["step"])] = (float(record[axis]), float(record[metric]))
    return found
