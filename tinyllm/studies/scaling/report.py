"""Report of a scaling study: ``scaling.md`` with pictures, CSV files, and sentences for the terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tinyllm.studies.report import theme
from tinyllm.studies.report.blocks import Block, Cell, Code, DataTable, Figures, Points, Section, Text, text_cell
from tinyllm.studies.report.markdown import section_text
from tinyllm.studies.report.svg import Picture, drawing, picture
from tinyllm.studies.report.tables import provenance_table
from tinyllm.studies.report.writing import write_files
from tinyllm.studies.scaling.law import LEVEL, Optimum, optimum
from tinyllm.studies.scaling.study import ScalingStudy, Trained
from tinyllm.utils.tables import csv_text
from tinyllm.utils.text import short

MARGIN = 1.5
"""Factor by which the law's curves extend beyond the trained sizes."""
SYMBOLS = {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β"}
"""Parameters of the law and their symbols."""
Interval = tuple[float, float]


def write_report(study: ScalingStudy, directory: Path) -> None:
    """Write ``scaling.md``, ``figures/*.svg``, ``runs.csv`` and ``optima.csv``; the same study gives the same bytes."""
    with drawing():
        pictures = [losses(study), frontier(study)]
    files = {f"figures/{drawn.name}.svg": drawn.file for drawn in pictures}
    first, *others = sections(study, pictures)
    parts = section_text(first, level=1) + [part for section in others for part in section_text(section)]
    text = "\n\n".join(parts) + "\n"
    write_files(directory, files | {"scaling.md": text, "runs.csv": runs_csv(study), "optima.csv": optima_csv(study)})


def sentences(study: ScalingStudy) -> list[str]:
    """The study in sentences: the law, its intervals, the optimum of each budget, caveats."""
    return findings(study) + [f"note: {note}" for note in study.notes]


def findings(study: ScalingStudy) -> list[str]:
    """The law, its intervals, and the optimum of each budget."""
    law, between = study.law, study.between
    parts = ", ".join(f"{symbol} {_range(getattr(law, name), between[name])}" for name, symbol in SYMBOLS.items())
    finished = sum(run.fitted is not None for run in study.runs)
    return [
        f"L(N, D) = {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.3g} + {law.B:.4g}/D^{law.beta:.3g} nats per token,"
        f" fitted to {finished} runs with a root-mean-square error of {study.misfit:.2%}",
        f"{LEVEL:.0%} intervals: {parts}",
        f"N* grows as C^{_range(study.exponent, between['exponent'])}, where N* is the optimal size at budget C",
        *map(optimum_line, study.optima),
    ]


def optimum_line(best: Optimum) -> str:
    """An optimum as a sentence."""
    return (
        f"{best.flops:.3g} FLOPs: {_short_range(best.parameters, best.parameters_between)} parameters,"
        f" {_short_range(best.tokens, best.tokens_between)} tokens,"
        f" {best.tokens / best.parameters:.3g} tokens per parameter, loss {best.loss:.4f}"
    )


def _short_range(number: float, between: Interval | None) -> str:
    return short(number) + (f" ({short(between[0])} to {short(between[1])})" if between else "")


def _range(number: float, between: Interval) -> str:
    return f"{number:.3g} ({between[0]:.3g} to {between[1]:.3g})"


def sections(study: ScalingStudy, pictures: list[Picture]) -> list[Section]:
    """Content of ``scaling.md``."""
    limits: list[Block] = [Text(text="What limits these results:"), Points(items=study.notes)] if study.notes else []
    figures: list[Block] = [Figures(pictures=[drawn], caption=drawn.description) for drawn in pictures]
    explanation = (
        f"Intervals enclose the middle {LEVEL:.0%} of {study.draws} fits to bootstrap samples of the runs, stratified"
        " by budget. The parabola in log N through the losses of one budget (approach 2 of Hoffmann et al. 2022) does"
        " not assume the form of the law; parentheses mean that its minimum lies outside the trained sizes."
    )
    cost = (
        f"FLOPs per token of these sizes: {study.price.factor:.3g}·N^{study.price.exponent:.3g}, where N counts active"
        " parameters."
    )
    return [
        Section(
            name="scaling",
            title="Scaling",
            blocks=[Code(text=study.command), Points(items=findings(study)), *limits, *figures],
        ),
        Section(
            name="optima",
            title="Optimum of each budget",
            blocks=[_optima_table(study), Text(text=explanation), Text(text=cost)],
        ),
        Section(name="runs", title="Runs", blocks=[_runs_table(study)]),
        Section(name="provenance", title="Provenance", blocks=[provenance_table(study.provenance)]),
    ]


def _optima_table(study: ScalingStudy) -> DataTable:
    headings = ["budget", "N*, law", f"{LEVEL:.0%} interval", "D*, law", "N*, parabola", "loss, law", "loss, parabola"]
    rows = []
    for best in study.optima:
        valley = next((valley for valley in study.valleys if valley.budget == best.flops), None)
        between, minimum = best.parameters_between, ""
        if valley is not None:
            minimum = short(valley.parameters) if valley.inside else f"({short(valley.parameters)})"
        row = [f"{best.flops:.3g}", short(best.parameters)]
        row += [f"{short(between[0])} to {short(between[1])}" if between else "", short(best.tokens), minimum]
        row += [f"{best.loss:.4f}", f"{valley.loss:.4f}" if valley is not None and valley.inside else ""]
        rows.append([Cell(text=text) for text in row])
    return DataTable(headings=headings, rows=rows)


def _runs_table(study: ScalingStudy) -> DataTable:
    rows = []
    for trained in study.runs:
        run = trained.run
        numbers = [f"{trained.budget:.3g}", str(run.seed), f"{trained.parameters:,}", f"{trained.tokens:,}"]
        numbers += [run.status if run.value is None else f"{run.value:.4f}", f"{_predicted(study, trained):.4f}"]
        rows.append([text_cell(trained.size), *(Cell(text=text) for text in numbers), text_cell(run.path)])
    headings = ["size", "budget", "seed", "parameters", "tokens", "loss", "loss, law", "run"]
    return DataTable(headings=headings, rows=rows)


def _predicted(study: ScalingStudy, trained: Trained) -> float:
    return float(study.law.loss(trained.parameters, trained.tokens))


def runs_csv(study: ScalingStudy) -> str:
    """Every run, with all digits."""
    head = ("size", "budget", "seed", "parameters", "tokens", "flops_per_token", "loss", "law", "status", "path")
    rows = [
        (
            *(trained.size, trained.budget, trained.run.seed, trained.parameters, trained.tokens),
            *(trained.flops_per_token, trained.run.value, _predicted(study, trained)),
            *(trained.run.status, trained.run.path),
        )
        for trained in study.runs
    ]
    return csv_text(head, rows)


def optima_csv(study: ScalingStudy) -> str:
    """Every optimum, with all digits."""
    head = ("flops", "parameters", "parameters_low", "parameters_high", "tokens", "tokens_low", "tokens_high", "loss")
    none = (None, None)
    rows = [
        (
            *(best.flops, best.parameters, *(best.parameters_between or none)),
            *(best.tokens, *(best.tokens_between or none), best.loss),
        )
        for best in study.optima
    ]
    return csv_text(head, rows)


def losses(study: ScalingStudy) -> Picture:
    """Loss over model size, one curve of the law for each budget, with its minimum."""
    figure, axes = _log_axes()
    for index, budget in enumerate(study.budgets):
        style = theme.style(index)
        points = [run.fitted for run in study.runs if run.budget == budget and run.fitted is not None]
        if not points:
            continue
        sizes = [point.parameters for point in points]
        values = [point.loss for point in points]
        axes.plot(sizes, values, style.marker, ms=6, color=style.light, label=f"{budget:.3g} FLOPs")
        grid = _log_grid(min(sizes) / MARGIN, max(sizes) * MARGIN)
        curve = [float(study.law.loss(size, budget / study.price.flops(size))) for size in grid]
        axes.plot(grid, curve, color=style.light, ls=style.dashes, lw=1.3)
        best = next(best for best in study.optima if best.flops == budget)
        axes.plot(best.parameters, best.loss, "*", ms=11, color=style.light, mec=theme.INK, mew=0.7, zorder=5)
    _log_ticks(axes.xaxis, short)
    axes.set_xlabel("active parameters N")
    axes.set_ylabel("val loss (nats per token)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    description = "Loss over model size at each budget. Marks are runs, curves the fitted law, stars its optima."
    return picture(figure, name="losses", label="losses", description=description)


def frontier(study: ScalingStudy) -> Picture:
    """Optimal size over budget: the law with its interval, and the minima of the parabolas."""
    figure, axes = _log_axes()
    law_style, parabola_style = theme.style(1), theme.style(2)
    optima = sorted(study.optima, key=lambda best: best.flops)
    bounded = [(best.flops, best.parameters_between) for best in optima if best.parameters_between]
    if bounded:
        low, high = zip(*(between for _, between in bounded), strict=True)
        axes.fill_between([flops for flops, _ in bounded], low, high, color=law_style.light, alpha=0.15, lw=0)
    grid = _log_grid(optima[0].flops, optima[-1].flops)
    curve = [optimum(study.law, study.price, flops).parameters for flops in grid]
    axes.plot(grid, curve, color=law_style.light, lw=1.6, label="law")
    trained = [(best.flops, best.parameters) for best in optima if best.flops in study.budgets]
    _marks(axes, trained, law_style)
    _marks(
        axes,
        [(best.flops, best.parameters) for best in optima if best.flops not in study.budgets],
        law_style,
        mfc=theme.PAPER,
        label="not trained",
    )
    inside = [(valley.budget, valley.parameters) for valley in study.valleys if valley.inside]
    _marks(axes, inside, parabola_style, label="parabola of one budget")
    axes.set_yscale("log")
    _log_ticks(axes.xaxis, lambda flops: f"{flops:.0e}".replace("+", ""))
    _log_ticks(axes.yaxis, short)
    axes.set_xlabel("budget C (FLOPs)")
    axes.set_ylabel("optimal size N* (active parameters)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    description = f"Optimal model size over budget; it grows as C^{study.exponent:.3g}."
    return picture(figure, name="frontier", label="frontier", description=description)


def _marks(axes: Any, points: list[tuple[float, float]], style: theme.Style, **looks: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), style.marker, color=style.light, **looks)


def _log_grid(low: float, high: float, count: int = 200) -> list[float]:
    """``count`` numbers from low to high, evenly spaced on a log scale."""
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def _log_ticks(axis: Any, shown: Callable[[float], str]) -> None:
    """Put ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, formatted by ``shown``."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axis.set_minor_formatter(NullFormatter())


def _log_axes() -> tuple[Any, Any]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    return figure, axes
