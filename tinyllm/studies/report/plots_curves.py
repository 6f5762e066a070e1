"""Training curves: the metric over tokens, FLOPs or wall time, averaged over an arm's seeds."""

import statistics
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.labels import shortened, spread
from tinyllm.studies.report.plots import gid
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.svg import Picture, picture
from tinyllm.utils.text import duration

AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "wall time"}
"""Keys of the records that can be the x axis, and their labels."""
_MAX_MARKERS = 24
"""Largest number of points of a curve with a marker and a tooltip."""
_ZOOM_FROM = 4
"""Number of evaluations from which the second half of training gets a panel of its own."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """An arm's metric at every evaluation that all of its finished seeds share."""

    steps: list[int]
    x: list[float]
    """Mean over the seeds; only seconds differ between them."""
    mean: list[float]
    low: list[float]
    """Minimum over the seeds."""
    high: list[float]
    """Maximum over the seeds."""
    seeds: int


def curve(summary: ArmSummary, *, axis: str, metric: str) -> Curve | None:
    """An arm's curve over tokens, flops or seconds; None if its finished runs share no evaluation with both values."""
    seeds = [points for run in summary.finished if (points := _points(run.records, axis, metric))]
    steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if not steps:
        return None
    values = [[points[step][1] for points in seeds] for step in steps]
    return Curve(
        steps=steps,
        x=[statistics.fmean(points[step][0] for points in seeds) for step in steps],
        mean=[statistics.fmean(at_step) for at_step in values],
        low=[min(at_step) for at_step in values],
        high=[max(at_step) for at_step in values],
        seeds=len(seeds),
    )


def _points(records: list[dict[str, float]], axis: str, metric: str) -> dict[int, tuple[float, float]]:
    """Pairs (x, metric) of a run by step. If a step was evaluated twice, the later record counts."""
    return {
        int(record["step"]): (float(record[axis]), float(record[metric]))
        for record in records
        if record.get(axis) is not None and record.get(metric) is not None
    }


Lines = list[tuple[ArmSummary, Curve]]


def curves(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """One picture for each axis that the records hold."""
    return [drawn for axis in AXES if (drawn := _curves(study, arms, axis)) is not None]


def _curves(study: Study, arms: list[ArmSummary], axis: str) -> Picture | None:
    lines = [(summary, line) for summary in arms if (line := curve(summary, axis=axis, metric=study.metric))]
    if not lines:
        return None
    scale, unit = _unit(axis, max(line.x[-1] for _, line in lines))
    zoomed = max(len(line.x) for _, line in lines) >= _ZOOM_FROM
    figure = Figure(figsize=(7.2, 6.6 if zoomed else 4.0), layout="constrained")
    panels = list(figure.subplots(2 if zoomed else 1, 1, squeeze=False, height_ratios=[2, 3] if zoomed else None)[:, 0])
    for axes in panels:
        for summary, line in lines:
            _draw(axes, summary, line, axis, scale, markers=axes is panels[-1])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        if axis != "seconds":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axes.set_ylabel(numbers.metric_axis(study.metric))
    if zoomed:
        _zoom(panels[-1], [line for _, line in lines], scale)
        panels[0].set_title("whole run", loc="left", fontsize=9.5, color=theme.SOFT)
        panels[-1].set_title("second half, enlarged", loc="left", fontsize=9.5, color=theme.SOFT)
    panels[-1].set_xlabel(f"{AXES[axis]}{unit}")
    _name_lines(panels[-1], lines, scale)
    ends = "; ".join(f"{summary.arm.name} {numbers.value(line.mean[-1])}" for summary, line in lines)
    description = f"{numbers.metric_name(study.metric)} over {AXES[axis]}, at the end: {ends}"
    return picture(figure, name=f"curves_{axis}", label=AXES[axis], description=description)


def _unit(axis: str, last: float) -> tuple[float, str]:
    """Divisor of x, and the unit after the axis label."""
    if axis != "seconds":
        return 1.0, ""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if last >= 2 * seconds:
            return seconds, f" ({name})"
    return 1.0, " (seconds)"


def _draw(axes: Any, summary: ArmSummary, line: Curve, axis: str, scale: float, *, markers: bool) -> None:
    style = theme.style(summary.style)
    x = [value / scale for value in line.x]
    if line.seeds > 1:
        axes.fill_between(x, line.low, line.high, color=style.light, alpha=0.14, lw=0, gid=gid(summary))
    axes.plot(x, line.mean, color=style.light, lw=1.6, ls=style.dashes, gid=gid(summary), zorder=3)
    if not markers:
        return
    looks = {"ms": 6, "color": style.light, "mec": theme.PAPER, "mew": 0.7}
    # Counted from the end, so that the last evaluation always has a marker.
    every = -(-len(x) // _MAX_MARKERS)
    for i in range(len(x) - 1, -1, -every):
        at = duration(line.x[i]) if axis == "seconds" else f"{numbers.brief(line.x[i])} {axis}"
        title = f", {at} (step {line.steps[i]}): {numbers.value(line.mean[i])}"
        if line.seeds > 1:
            title += f", {line.seeds} seeds from {numbers.value(line.low[i])} to {numbers.value(line.high[i])}"
        axes.plot(x[i], line.mean[i], style.marker, gid=gid(summary, title), **looks)


def _tick(value: float) -> str:
    """Tick label without trailing zeros: ``2.5M`` instead of ``2.50M``."""
    text = numbers.brief(value)
    digits = text.rstrip("kMGTP")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + text[len(digits) :]


def _zoom(axes: Any, lines: list[Curve], scale: float) -> None:
    """Limit the axes to the second half of training, high enough for all bands in it."""
    end = max(line.x[-1] for line in lines)
    shown = [
        (low, high)
        for line in lines
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if x >= min(end / 2, line.x[-1])
    ]
    least, most = min(low for low, _ in shown), max(high for _, high in shown)
    room = 0.06 * (most - least) or 0.01
    axes.set_ylim(least - room, most + room)
    start = min(end / 2, *(line.x[-1] for line in lines))
    axes.set_xlim(start / scale, (end + 0.012 * (end - start)) / scale)


def _name_lines(axes: Any, lines: Lines, scale: float) -> None:
    """Write each arm's name to the right of its curve, moved apart where names would overlap."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    inches = axes.figure.get_figheight() * (0.5 if len(axes.figure.axes) > 1 else 0.75)
    gap = (high - low) * 0.17 / inches
    heights = spread([line.mean[-1] for _, line in lines], gap=gap, low=low, high=high)
    for (summary, line), y in zip(lines, heights, strict=True):
        colour = theme.style(summary.style).light
        axes.annotate(
            shortened(summary.arm.name),
            (line.x[-1] / scale, line.mean[-1]),
            xytext=(right + 0.035 * (right - left), y),
            textcoords="data",
            va="center",
            color=colour,
            fontsize=9,
            gid=gid(summary),
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=colour, lw=0.6, relpos=(0, 0.5), shrinkA=1, shrinkB=3),
        )
