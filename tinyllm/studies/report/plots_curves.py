"""Pictures of the metric in the course of training, over tokens, FLOPs or seconds."""

from typing import Any

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.curves import Curve, curve
from tinyllm.studies.report.labels import shortened, spread
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.svg import Picture, picture

AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "wall time"}
"""What curves can be drawn over: the records' names and how one says them."""
_MARKERS = 24
"""Points of a curve that get a marker and a title at most."""
_CLOSE = 4
"""Evaluations from which the second half gets a picture of its own."""


def curves(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """A picture for each axis that the records hold."""
    return [one for axis in AXES if (one := _curves(study, arms, axis)) is not None]


def _curves(study: Study, arms: list[ArmSummary], axis: str) -> Picture | None:
    from matplotlib.figure import Figure

    found = [(one, line) for one in arms if (line := curve(one, axis=axis, metric=study.metric)) is not None]
    if not found:
        return None
    scale, unit = _unit(axis, max(line.x[-1] for _, line in found))
    closer = max(len(line.x) for _, line in found) >= _CLOSE
    figure = Figure(figsize=(7.2, 6.6 if closer else 4.0), layout="constrained")
    panels = list(figure.subplots(2 if closer else 1, 1, squeeze=False, height_ratios=[2, 3] if closer else None)[:, 0])
    for axes in panels:
        for one, line in found:
            _line(axes, one, line, axis, scale, markers=axes is panels[-1])
        _ticks(axes, axis)
        axes.set_ylabel(numbers.metric_axis(study.metric))
    if closer:
        _second_half(panels[-1], [line for _, line in found], scale)
        panels[0].set_title("the whole training", loc="left", fontsize=9.5, color=theme.SOFT)
        panels[-1].set_title("its second half, closer", loc="left", fontsize=9.5, color=theme.SOFT)
    panels[-1].set_xlabel(f"{AXES[axis]}{unit}")
    _names_at_the_ends(panels[-1], found, scale)
    ends = "; ".join(f"{one.arm.name} {numbers.value(line.mean[-1])}" for one, line in found)
    description = f"{numbers.metric_name(study.metric)} over {AXES[axis]}, at the end: {ends}"
    return picture(figure, name=f"curves_{axis}", label=AXES[axis], description=description)


def _unit(axis: str, last: float) -> tuple[float, str]:
    """What x is divided by, and how the unit is written."""
    if axis != "seconds":
        return 1.0, ""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if last >= 2 * seconds:
            return seconds, f" ({name})"
    return 1.0, " (seconds)"


def _line(axes: Any, one: ArmSummary, line: Curve, axis: str, scale: float, *, markers: bool) -> None:
    look, gid = theme.style(one.style), f"arm:{one.style}"
    x = [value / scale for value in line.x]
    if line.seeds > 1:
        axes.fill_between(x, line.low, line.high, color=look.light, alpha=0.14, lw=0, gid=gid)
    axes.plot(x, line.mean, color=look.light, lw=1.6, ls=look.dashes, gid=gid, zorder=3)
    if not markers:
        return
    every = -(-len(x) // _MARKERS)
    for place in range(len(x) - 1, -1, -every):
        at = numbers.clock(line.x[place]) if axis == "seconds" else f"{numbers.brief(line.x[place])} {axis}"
        title = (
            f"{gid}|{numbers.line(one.arm.name)}, {at} (step {line.steps[place]}): {numbers.value(line.mean[place])}"
        )
        if line.seeds > 1:
            title += f", {line.seeds} seeds from {numbers.value(line.low[place])} to {numbers.value(line.high[place])}"
        axes.plot(x[place], line.mean[place], look.marker, ms=6, color=look.light, mec=theme.PAPER, mew=0.7, gid=title)


def _ticks(axes: Any, axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    if axis != "seconds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    """``2.50M`` as ``2.5M``."""
    text = numbers.brief(value)
    digits = text.rstrip("kMGTP")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + text[len(digits) :]


def _second_half(axes: Any, lines: list[Curve], scale: float) -> None:
    """Limits that show where the curves end, with all of their bands from the middle on."""
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


def _names_at_the_ends(axes: Any, found: list[tuple[ArmSummary, Curve]], scale: float) -> None:
    """Each arm's name to the right of its curve, moved apart where they would lie on each other."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    inches = axes.figure.get_figheight() * (0.5 if len(axes.figure.axes) > 1 else 0.75)
    gap = (high - low) * 0.17 / inches
    places = spread([line.mean[-1] for _, line in found], gap=gap, low=low, high=high)
    for (one, line), y in zip(found, places, strict=True):
        look = theme.style(one.style)
        axes.annotate(
            shortened(one.arm.name),
            (line.x[-1] / scale, line.mean[-1]),
            xytext=(right + 0.035 * (right - left), y),
            textcoords="data",
            va="center",
            color=look.light,
            fontsize=9,
            gid=f"arm:{one.style}",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.light,
                "lw": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
