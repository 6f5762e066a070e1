"""The picture of a coordinate check."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from tinyllm.studies.coord_check.coordinates import KINDS, Coordinate, Slope, means
from tinyllm.studies.report.svg import drawing
from tinyllm.utils.files import write_atomic

_HEADINGS = {"size": "size", "change": "change since the start"}
_SPAN = 10.0
"""How much larger the top of every picture is than its bottom, at least: what hardly changes shall look so."""


def draw(found: Sequence[Coordinate], fits: Sequence[Slope], paths: Iterable[Path], *, title: str) -> None:
    """Sizes and changes of each kind against the width, a line for each step; the seeds are averaged.

    Args:
        fits: their slopes after the last step stand above each picture.
        paths: files; the suffix says what is written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    widths, steps = sorted({one.width for one in found}), sorted({one.step for one in found})
    with drawing():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        grid = figure.subplots(len(_HEADINGS), len(KINDS), sharex=True)
        for row, (name, heading) in zip(grid, _HEADINGS.items(), strict=True):
            for axes, kind in zip(row, KINDS, strict=True):
                for step in steps if name == "size" else steps[1:]:
                    values = means([one for one in found if one.step == step and one.kind == kind], name)
                    seeds = {seed for _, seed in values}
                    line = [sum(values[width, seed] for seed in seeds) / len(seeds) for width in widths]
                    shade = colormaps["cividis_r"](0.15 + 0.85 * step / steps[-1])
                    axes.plot(widths, line, color=shade, marker="o", ms=3.5, lw=1.4, label=f"{step}")
                fit = next(one for one in fits if one.kind == kind and one.figure == name)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.xaxis.set_major_locator(FixedLocator(widths))
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_minor_locator(NullLocator())
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                low, high = axes.get_ylim()
                spread = max(1.0, (_SPAN * low / high) ** 0.5)
                axes.set_ylim(low / spread, high * spread)
                verdict = "" if fit.passes else ": FAIL"
                axes.set_title(f"{kind}, width^{fit.slope:+.2f}{verdict}", fontsize=9.5)
            row[0].set_ylabel(f"mean absolute {heading}")
        for axes in grid[-1]:
            axes.set_xlabel("width")
        grid[0][-1].legend(title="step", fontsize=8, title_fontsize=8)
        figure.suptitle(f"coordinate check: {title}", fontsize=10.5)
        for path in paths:
            facts = {"Date": None} if path.suffix == ".svg" else None
            save = partial(figure.savefig, format=path.suffix[1:], dpi=130, metadata=facts)
            write_atomic(path, save)
