"""Picture of a coordinate check."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tinyllm.studies.coord_check.coordinates import CHANGE, KINDS, SIZE, Coordinate, Slope, means
from tinyllm.studies.report.svg import drawing
from tinyllm.utils.files import write_atomic

LABELS = {SIZE: "size", CHANGE: "change since the start"}
_MIN_SPAN = 10.0
"""Smallest ratio of the top of a panel to its bottom: a curve that hardly changes should look flat."""


def draw(coordinates: Sequence[Coordinate], fits: Sequence[Slope], paths: Iterable[Path], *, title: str) -> None:
    """Draw size and change of each kind against the width: one line per step, averaged over seeds.

    Args:
        fits: slopes after the last step, shown above each panel.
        paths: files to write; the suffix is the format.
    """
    with drawing():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        grid = figure.subplots(len(LABELS), len(KINDS), sharex=True)
        for row, (name, label) in zip(grid, LABELS.items(), strict=True):
            for axes, kind in zip(row, KINDS, strict=True):
                fit = next(fit for fit in fits if fit.kind == kind and fit.figure == name)
                _panel(axes, [coordinate for coordinate in coordinates if coordinate.kind == kind], fit)
            row[0].set_ylabel(f"mean absolute {label}")
        for axes in grid[-1]:
            axes.set_xlabel("width")
        grid[0][-1].legend(title="step", fontsize=8, title_fontsize=8)
        figure.suptitle(f"coordinate check: {title}", fontsize=10.5)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None  # the same data gives the same bytes
            write_atomic(path, partial(figure.savefig, format=path.suffix[1:], dpi=130, metadata=metadata))


def _panel(axes: Any, coordinates: Sequence[Coordinate], fit: Slope) -> None:
    """One kind: a line per step over the widths. The change at step 0 is zero and not drawn."""
    widths = sorted({coordinate.width for coordinate in coordinates})
    steps = sorted({coordinate.step for coordinate in coordinates})
    for step in steps if fit.figure == SIZE else steps[1:]:
        values = means([coordinate for coordinate in coordinates if coordinate.step == step], fit.figure)
        seeds = {seed for _, seed in values}
        line = [sum(values[width, seed] for seed in seeds) / len(seeds) for width in widths]
        colour = colormaps["cividis_r"](0.15 + 0.85 * step / steps[-1])
        axes.plot(widths, line, color=colour, marker="o", ms=3.5, lw=1.4, label=f"{step}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    margin = max(1.0, (_MIN_SPAN * low / high) ** 0.5)
    axes.set_ylim(low / margin, high * margin)
    axes.set_title(f"{fit.kind}, width^{fit.slope:+.2f}{'' if fit.passes else ': FAIL'}", fontsize=9.5)
