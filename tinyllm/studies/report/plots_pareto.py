"""Pictures of what quality costs: the metric against training FLOPs, cache and latency, with the Pareto front."""

from collections.abc import Callable
from typing import Any

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, pareto, theme
from tinyllm.studies.report.labels import place_names, shortened
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.svg import Picture, picture

PRICES: dict[str, tuple[str, Callable[[ArmSummary], float | None]]] = {
    "flops": ("FLOPs of one training", lambda one: one.arm.flops),
    "kv_bytes": ("cache, bytes per token (bf16)", lambda one: one.arm.account.kv_bytes_per_token),
    "latency": ("decoding, ms per token", lambda one: one.decode_ms),
}
"""What is paid, by the name of the picture: how one says it, and where it stands."""
_LOG = 4.0
"""Greatest over least price from which the axis is logarithmic."""


def on_front(arms: list[ArmSummary], price: str) -> set[str]:
    """Names of the arms that no other beats on price and mean metric both."""
    points = _points(arms, price)
    return {points[place][0].arm.name for place in pareto.front([(x, y) for _, x, y in points])}


def fronts(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """A picture for each price that at least two arms have."""
    return [_front(study, arms, price) for price in PRICES if len(_points(arms, price)) > 1]


def _points(arms: list[ArmSummary], price: str) -> list[tuple[ArmSummary, float, float]]:
    paid = [(one, PRICES[price][1](one), one.mean) for one in arms]
    return [(one, x, y) for one, x, y in paid if x is not None and y is not None]


def _front(study: Study, arms: list[ArmSummary], price: str) -> Picture:
    from matplotlib.figure import Figure

    points = _points(arms, price)
    best = pareto.front([(x, y) for _, x, y in points])
    figure = Figure(figsize=(4.4, 3.9), layout="constrained")
    axes = figure.subplots()
    _limits(axes, [x for _, x, _ in points])
    corners = pareto.steps([points[place][1:] for place in best])
    axes.plot(*zip(*corners, strict=True), color=theme.SOFT, lw=1.1, ls=(0, (4, 2)), zorder=1)
    for place, (one, x, y) in enumerate(points):
        look, beaten = theme.style(one.style), place not in best
        if one.sd is not None:
            axes.errorbar(x, y, yerr=one.sd, color=look.light, lw=1, capsize=2.5, gid=f"arm:{one.style}", zorder=3)
        title = f"arm:{one.style}|{numbers.line(one.arm.name)}: {numbers.value(y)} at {_price(price, x)}"
        title += ", beaten on both by another" if beaten else ", on the front"
        fill = theme.PAPER if beaten else look.light
        axes.plot(x, y, look.marker, ms=8, mfc=fill, mec=look.light, mew=1.5, gid=title, zorder=5)
    axes.margins(y=0.16)
    axes.set_xlabel(PRICES[price][0])
    axes.set_ylabel(numbers.metric_axis(study.metric))
    names = [shortened(one.arm.name, 20) for one, _, _ in points]
    colours = [theme.style(one.style).light for one, _, _ in points]
    whiskers = [[(x, y - (one.sd or 0.0)), (x, y + (one.sd or 0.0))] for one, x, y in points]
    gids = [f"arm:{one.style}" for one, _, _ in points]
    place_names(axes, [point[1:] for point in points], names, colours, gids, avoid=[corners, *whiskers])
    front = ", ".join(points[place][0].arm.name for place in best)
    description = f"{numbers.metric_name(study.metric)} against {PRICES[price][0]}; on the front: {front}"
    return picture(figure, name=f"pareto_{price}", label=PRICES[price][0], description=description)


def _price(price: str, x: float) -> str:
    return f"{x:.3g} ms" if price == "latency" else numbers.brief(x)


def _limits(axes: Any, prices: list[float]) -> None:
    """A logarithmic axis where the prices lie far apart; room at both ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    least, most = min(prices), max(prices)
    if least > 0 and most / least >= _LOG:
        axes.set_xscale("log")
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
