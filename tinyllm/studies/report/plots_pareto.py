"""Pictures of quality against cost (training FLOPs, KV cache, latency) with their Pareto fronts."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.labels import Point, place_names, shortened
from tinyllm.studies.report.plots import gid
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.svg import Picture, picture

PRICES: dict[str, tuple[str, Callable[[ArmSummary], float | None]]] = {
    "flops": ("FLOPs of one training run", lambda summary: summary.arm.flops),
    "kv_bytes": ("cache, bytes per token (bf16)", lambda summary: summary.arm.account.kv_bytes_per_token),
    "latency": ("decoding, ms per token", lambda summary: summary.decode_ms),
}
"""Costs by the name of their picture: label and value."""
_LOG_FROM = 4.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""


def front(points: list[Point]) -> list[int]:
    """Indices of the points that no other point dominates, ordered by x. Lower is better on both axes.

    A point dominates a second one if it is no worse on both axes and better on one. Equal points do not dominate each
    other.
    """
    free = (i for i, point in enumerate(points) if not any(_dominates(other, point) for other in points))
    return sorted(free, key=points.__getitem__)


def _dominates(point: Point, other: Point) -> bool:
    return point[0] <= other[0] and point[1] <= other[1] and point != other


def _best(points: list[Point], *, lower_is_better: bool) -> list[int]:
    """The front of points whose y is a metric."""
    return front([(x, y if lower_is_better else -y) for x, y in points])


def staircase(points: list[Point]) -> list[Point]:
    """Corners of the boundary of the region that a front dominates; ``points`` are ordered by x."""
    corners: list[Point] = []
    for x, y in points:
        if corners and corners[-1][1] != y:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners


def front_names(arms: list[ArmSummary], price: str, *, lower_is_better: bool = True) -> list[str]:
    """Names of the arms on the Pareto front of a cost and the mean metric, in the order of the arms."""
    priced = _priced(arms, price)
    on_front = _best([point for _, point in priced], lower_is_better=lower_is_better)
    return [priced[index][0].arm.name for index in sorted(on_front)]


def fronts(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """One picture for each cost that is known for at least two arms."""
    return [_front_picture(study, arms, price) for price in PRICES if len(_priced(arms, price)) > 1]


def _priced(arms: list[ArmSummary], price: str) -> list[tuple[ArmSummary, Point]]:
    costs = [(summary, PRICES[price][1](summary), summary.mean) for summary in arms]
    return [(summary, (x, y)) for summary, x, y in costs if x is not None and y is not None]


def _front_picture(study: Study, arms: list[ArmSummary], price: str) -> Picture:
    label, _ = PRICES[price]
    priced = _priced(arms, price)
    points = [point for _, point in priced]
    best = _best(points, lower_is_better=study.lower_is_better)
    figure = Figure(figsize=(4.4, 3.9), layout="constrained")
    axes = figure.subplots()
    _set_limits(axes, [x for x, _ in points])
    corners = staircase([points[index] for index in best])
    axes.plot(*zip(*corners, strict=True), color=theme.SOFT, lw=1.1, ls=(0, (4, 2)), zorder=1)
    for index, (summary, (x, y)) in enumerate(priced):
        style, dominated = theme.style(summary.style), index not in best
        if summary.sd is not None:
            axes.errorbar(x, y, yerr=summary.sd, color=style.light, lw=1, capsize=2.5, gid=gid(summary), zorder=3)
        cost = f"{x:.3g} ms" if price == "latency" else numbers.brief(x)
        title = gid(summary, f": {numbers.value(y)} at {cost}, {'dominated' if dominated else 'on the front'}")
        fill = theme.PAPER if dominated else style.light
        axes.plot(x, y, style.marker, ms=8, mfc=fill, mec=style.light, mew=1.5, gid=title, zorder=5)
    axes.margins(y=0.16)
    axes.set_xlabel(label)
    axes.set_ylabel(numbers.metric_axis(study.metric))
    place_names(
        axes,
        points,
        names=[shortened(summary.arm.name, 20) for summary, _ in priced],
        colours=[theme.style(summary.style).light for summary, _ in priced],
        gids=[gid(summary) for summary, _ in priced],
        avoid=[corners, *([(x, y - (one.sd or 0.0)), (x, y + (one.sd or 0.0))] for one, (x, y) in priced)],
    )
    names = ", ".join(priced[index][0].arm.name for index in best)
    description = f"{numbers.metric_name(study.metric)} against {label}; on the front: {names}"
    return picture(figure, name=f"pareto_{price}", label=label, description=description)


def _set_limits(axes: Any, costs: list[float]) -> None:
    """Scale and limits of the x axis: logarithmic where the costs lie far apart, with room at both ends for names."""
    least, most = min(costs), max(costs)
    if least > 0 and most / least >= _LOG_FROM:
        axes.set_xscale("log")
        # Less than two decades have too few powers of ten for ticks.
        axes.xaxis.set_major_locator(LogLocator(base=10 if most / least > 100 else 2))
        axes.xaxis.set_minor_locator(NullLocator())
        room = (most / least) ** 0.16
        axes.set_xlim(least / room, most * room)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        room = 0.18 * (most - least) or 0.1 * abs(most) or 1.0
        axes.set_xlim(least - room, most + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    if value >= 1e5:
        return numbers.brief(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
