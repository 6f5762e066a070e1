"""The options of a chart of curves, for ECharts: what is drawn, with which points, in which colors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllm.runs.metrics_tail import Array
from tinyllm.runs.thinning import m4, smoothed
from tinyllm.studies.report.theme import Style

COLUMNS = 1200
"""Pixel columns of the widest chart."""
MOST_POINTS = 16_000
"""Points in a chart that a browser redraws every second; more curves get fewer pixel columns each, and more once they
are zoomed into."""
MOST_MARKS = 200
"""Marked values of a curve that are not finite."""
FEW = 60
"""A curve of so few points shows each as a dot."""
TITLES = {"step": "steps", "tokens": "training tokens", "flops": "training FLOPs", "seconds": "seconds"}
COMPACT = "value => Intl.NumberFormat('en', {notation: 'compact', maximumFractionDigits: 2}).format(value)"
"""Axis labels such as 1.5M. Data never becomes code: of the chart's options only this constant is a function."""
Window = tuple[float, float]
"""The visible part of the axis, in percent."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric of a run."""

    name: str
    """Shown in the tooltip; safe to show."""
    style: Style
    dashed: bool = False
    x: Array
    """Ascending."""
    y: Array
    """NaN where a record holds no finite value."""


def chart_options(
    curves: Sequence[Curve],
    *,
    axis: str,
    title: str,
    dark: bool,
    smooth: float = 0.0,
    log: bool = False,
    window: Window = (0.0, 100.0),
) -> dict[str, Any]:
    """The whole chart.

    Args:
        axis: what the curves are drawn over.
        title: of the vertical axis.
        smooth: weight of the moving average; above 0 the recorded values stay visible behind it.
        log: a logarithmic vertical axis.
        window: the part that is visible; it gets the points, the rest a few.
    """
    ink, line = ("#c9d1d9", "#343b43") if dark else ("#3b4550", "#dfe3e8")
    filled = [curve for curve in curves if len(curve.x)]
    series = []
    for number, curve in enumerate(filled):
        columns = max(20, min(COLUMNS, MOST_POINTS // (4 * len(filled) * (2 if smooth else 1))))
        color = curve.style.dark if dark else curve.style.light
        common = {
            "type": "line",
            "name": curve.name,
            "symbol": "none",
            "animation": False,
            "color": color,
            "emphasis": {"disabled": True},
        }
        raw = points(curve.x, curve.y, columns=columns, log=log, window=window, dots=not smooth)
        stroke = {"color": color, "width": 1.7, "type": "dashed" if curve.dashed else "solid"}
        raw |= {"id": f"raw {number}", "lineStyle": stroke | {"opacity": 0.3 if smooth else 1.0}}
        if smooth:
            average = points(curve.x, smoothed(curve.y, smooth), columns=columns, log=log, window=window, dots=True)
            raw |= {"tooltip": {"show": False}, "silent": True, "z": 1}
            series.append({**common, **average, "id": f"smooth {number}", "lineStyle": stroke})
        series.append({**common, **raw})
    if series:
        series.append(marks(filled, dark=dark))
    label = {"color": ink, "fontSize": 12}
    return {
        "backgroundColor": "transparent",
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "animation": False,
        "grid": {"left": 12, "right": 20, "top": 36, "bottom": 62, "containLabel": True},
        "tooltip": {
            "trigger": "axis" if len(filled) <= 12 else "item",
            "confine": True,
            "order": "valueAsc",
            "backgroundColor": "#1b1f24" if dark else "#ffffff",
            "borderColor": line,
            "textStyle": {"color": ink, "fontSize": 12},
        },
        "xAxis": {
            "type": "value",
            "name": TITLES[axis],
            "nameLocation": "middle",
            "nameGap": 28,
            "nameTextStyle": label,
            "min": "dataMin",
            "max": "dataMax",
            "axisLabel": {**label, "hideOverlap": True, ":formatter": COMPACT},
            "axisLine": {"lineStyle": {"color": line}},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "log" if log else "value",
            "name": title,
            "nameTextStyle": {**label, "align": "left"},
            "nameGap": 14,
            "scale": True,
            "axisLabel": {**label, ":formatter": COMPACT},
            "splitLine": {"lineStyle": {"color": line}},
        },
        "dataZoom": [
            {"type": "inside", "filterMode": "none", "zoomOnMouseWheel": "ctrl", "start": window[0], "end": window[1]},
            {
                "type": "slider",
                "filterMode": "none",
                "height": 16,
                "bottom": 8,
                "showDetail": False,
                "brushSelect": False,
            }
            | {"start": window[0], "end": window[1], "borderColor": line, "showDataShadow": False},
        ],
        "series": tuple(series),  # NiceGUI watches every list of an element for changes, but no tuple
    }


def points(x: Array, y: Array, *, columns: int, log: bool, window: Window, dots: bool) -> dict[str, Any]:
    """The data of a curve, thinned. A point between two gaps is a dot, since no line leads to it."""
    if log:
        y = np.where(y > 0, y, np.nan)
    kept = visible(x, y, columns=columns, window=window)
    x, y = x[kept], y[kept]
    there = np.isfinite(y)
    before, after = np.concatenate(([False], there[:-1])), np.concatenate((there[1:], [False]))
    alone = there & ~before & ~after
    dotted = there if dots and there.sum() <= FEW else alone
    data: list[Any] = []
    for at, value, is_there, is_dot in zip(x.tolist(), y.tolist(), there.tolist(), dotted.tolist(), strict=True):
        pair = [at, float(f"{value:.6g}") if is_there else None]
        data.append({"value": pair, "symbol": "circle", "symbolSize": 5} if is_dot else pair)
    return {"data": data}


def visible(x: Array, y: Array, *, columns: int, window: Window) -> Any:
    """The points to send: those of the visible part thinned to its pixels, and a few of the rest."""
    if len(x) <= 4 * columns or window == (0.0, 100.0):
        return m4(x, y, columns)
    low, high = (x[0] + (x[-1] - x[0]) * share / 100 for share in window)
    # One point more on each side, so that lines enter and leave the window.
    first = max(0, int(np.searchsorted(x, low)) - 1)
    last = min(len(x), int(np.searchsorted(x, high, side="right")) + 1)
    inside = first + m4(x[first:last], y[first:last], columns) if last > first else np.empty(0, dtype=np.int64)
    return np.union1d(m4(x, y, columns // 10), inside)


def marks(curves: Sequence[Curve], *, dark: bool) -> dict[str, Any]:
    """Triangles at the bottom of the chart where values are not finite: a series without points of its own."""
    data = []
    for curve in curves:
        broken = curve.x[~np.isfinite(curve.y)]
        chosen = broken[np.unique(np.linspace(0, len(broken) - 1, min(len(broken), MOST_MARKS)).astype(int))]
        color = {"color": curve.style.dark if dark else curve.style.light}
        data += [{"name": "not finite", "coord": [at, 1], "y": "86%", "itemStyle": color} for at in chosen.tolist()]
    shape = {"symbol": "triangle", "symbolSize": 9, "label": {"show": False}, "silent": True, "animation": False}
    return {"type": "line", "id": "marks", "data": [], "markPoint": {**shape, "data": data}}
