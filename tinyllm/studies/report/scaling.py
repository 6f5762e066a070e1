"""A scaling study as a page of Markdown with pictures, as tables for other programs, and as lines for a terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.studies.report import theme
from tinyllm.studies.report.svg import Picture, drawing, picture
from tinyllm.studies.report.writing import write_files
from tinyllm.studies.scaling.law import LEVEL, Law, Optimum
from tinyllm.studies.scaling.study import ScalingStudy
from tinyllm.utils.tables import csv_text
from tinyllm.utils.text import short

MARGIN = 1.5
"""How far beyond the sizes that were trained the curves are drawn."""
NAMES = {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β"}


def write_scaling(study: ScalingStudy, directory: Path) -> None:
    """Write ``scaling.md``, ``figures/*.svg``, ``runs.csv`` and ``optima.csv``; the same study gives the same bytes."""
    with drawing():
        pictures = [losses(study), frontier(study)]
    files = {f"figures/{one.name}.svg": one.file for one in pictures}
    files |= {"scaling.md": markdown(study, pictures), "runs.csv": runs_csv(study), "optima.csv": optima_csv(study)}
    write_files(directory, files)


def sentences(study: ScalingStudy) -> list[str]:
    """What the study says."""
    law, between = study.law, study.between
    parts = ", ".join(f"{shown} {_among(getattr(law, name), *between[name])}" for name, shown in NAMES.items())
    finished = sum(one.point is not None for one in study.runs)
    lines = [
        f"L(N, D) = {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.3g} + {law.B:.4g}/D^{law.beta:.3g} nats per token,"
        f" fitted to {finished} runs, which it misses by {study.misfit:.2%} (root mean square)",
        f"{LEVEL:.0%} intervals: {parts}",
        f"N* grows as C^{_among(study.exponent, *between['exponent'])}",
    ]
    return lines + [optimum_line(one) for one in study.optima] + [f"note: {note}" for note in study.notes]


def optimum_line(best: Optimum) -> str:
    """An optimum as a sentence."""
    return (
        f"{best.flops:.3g} FLOPs: {_size(best.parameters, best.parameters_between)} parameters,"
        f" {_size(best.tokens, best.tokens_between)} tokens, {best.tokens / best.parameters:.3g} for each,"
        f" loss {best.loss:.4f}"
    )


def _size(number: float, between: tuple[float, float] | None) -> str:
    return short(number) + (f" ({short(between[0])} to {short(between[1])})" if between else "")


def _among(number: float, low: float, high: float) -> str:
    return f"{number:.3g} ({low:.3g} to {high:.3g})"


def markdown(study: ScalingStudy, pictures: list[Picture]) -> str:
    """The page."""
    law = [line for line in sentences(study) if not line.startswith("note: ")]
    parts = ["# Scaling", f"`{study.command}`", "\n".join(f"- {line}" for line in law)]
    if study.notes:
        parts.append("\n".join(["What limits this:\n", *(f"- {note}" for note in study.notes)]))
    parts += [f"![{one.description}](figures/{one.name}.svg)" for one in pictures]
    parts += [
        "## The lowest point of each budget",
        _table(
            ("budget", "N*, law", f"{LEVEL:.0%} interval", "D*, law", "N*, parabola", "loss, law", "loss, parabola"),
            [_budget_row(study, best) for best in study.optima],
        ),
        f"The intervals are the middle {LEVEL:.0%} of {study.draws} fits, each to as many runs of every budget as there"
        " are, drawn with replacement. A parabola through the losses of one budget over log N (approach 2 of Hoffmann"
        " et al. 2022) uses no form of the law; in parentheses: its lowest point lies outside of the sizes trained.",
        f"FLOPs per token of these sizes: {study.price.factor:.3g}·N^{study.price.exponent:.3g}, where N counts active"
        " parameters.",
        "## Runs",
        _table(
            ("size", "budget", "seed", "parameters", "tokens", "loss", "law", "run"),
            [_run_row(study, one) for one in study.runs],
        ),
        "## Made by",
        _table(("what", "which"), [(name, _short(value)) for name, value in study.provenance.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _budget_row(study: ScalingStudy, best: Optimum) -> tuple[str, ...]:
    valley = next((one for one in study.valleys if one.budget == best.flops), None)
    between = best.parameters_between
    lowest = "" if valley is None else short(valley.parameters) if valley.inside else f"({short(valley.parameters)})"
    return (
        f"{best.flops:.3g}",
        short(best.parameters),
        f"{short(between[0])} to {short(between[1])}" if between else "",
        short(best.tokens),
        lowest,
        f"{best.loss:.4f}",
        f"{valley.loss:.4f}" if valley is not None and valley.inside else "",
    )


def _run_row(study: ScalingStudy, one: Any) -> tuple[str, ...]:
    value = one.run.value
    return (
        one.size,
        f"{one.budget:.3g}",
        str(one.run.seed),
        f"{one.parameters:,}",
        f"{one.tokens:,}",
        one.run.status if value is None else f"{value:.4f}",
        f"{study.law.loss(one.parameters, one.tokens):.4f}",
        f"`{one.run.path}`",
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _short(value: Any) -> str:
    text = str(value)
    return f"`{text[:12]}`" if len(text) == 64 else " ".join(text.split())


def runs_csv(study: ScalingStudy) -> str:
    """Every run with all digits."""
    head = ("size", "budget", "seed", "parameters", "tokens", "flops_per_token", "loss", "law", "status", "path")
    rows = [
        (
            *(one.size, one.budget, one.run.seed, one.parameters, one.tokens, one.flops_per_token, one.run.value),
            *(study.law.loss(one.parameters, one.tokens), one.run.status, one.run.path),
        )
        for one in study.runs
    ]
    return csv_text(head, rows)


def optima_csv(study: ScalingStudy) -> str:
    """Every optimum with all digits."""
    head = ("flops", "parameters", "parameters_low", "parameters_high", "tokens", "tokens_low", "tokens_high", "loss")
    none = (None, None)
    rows = [
        (
            one.flops,
            one.parameters,
            *(one.parameters_between or none),
            one.tokens,
            *(one.tokens_between or none),
            one.loss,
        )
        for one in study.optima
    ]
    return csv_text(head, rows)


def losses(study: ScalingStudy) -> Picture:
    """The loss of every run over its size, by budget, with the law's curve and its lowest point."""
    figure, axes = _axes()
    for index, budget in enumerate(study.budgets):
        look = theme.style(index)
        mine = [one for one in study.runs if one.budget == budget and one.point is not None]
        if not mine:
            continue
        sizes = [one.parameters for one in mine]
        axes.plot(
            sizes, [one.run.value for one in mine], look.marker, ms=6, color=look.light, label=f"{budget:.3g} FLOPs"
        )
        grid = _spread(min(sizes) / MARGIN, max(sizes) * MARGIN)
        axes.plot(grid, [_loss(study, one, budget) for one in grid], color=look.light, ls=look.dashes, lw=1.3)
        best = next(one for one in study.optima if one.flops == budget)
        axes.plot(best.parameters, best.loss, "*", ms=11, color=look.light, mec=theme.INK, mew=0.7, zorder=5)
    _ticks(axes.xaxis, short)
    axes.set_xlabel("active parameters N")
    axes.set_ylabel("val loss (nats per token)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    told = "Loss over size at each budget, with the law's curves; a star is the optimum"
    return picture(figure, name="losses", label="losses", description=told)


def frontier(study: ScalingStudy) -> Picture:
    """The best size over the budget: the law with its interval, and the parabolas."""
    figure, axes = _axes()
    look, other = theme.style(1), theme.style(2)
    flops = [one.flops for one in study.optima]
    grid = _spread(min(flops), max(flops))
    ordered = sorted(study.optima, key=lambda one: one.flops)
    low = [one.parameters_between[0] for one in ordered if one.parameters_between]
    high = [one.parameters_between[1] for one in ordered if one.parameters_between]
    axes.fill_between([one.flops for one in ordered], low, high, color=look.light, alpha=0.15, lw=0)
    axes.plot(grid, [_best(study.law, study, one) for one in grid], color=look.light, lw=1.6, label="law")
    trained, beyond = ([o for o in ordered if (o.flops in study.budgets) is known] for known in (True, False))
    axes.plot([o.flops for o in trained], [o.parameters for o in trained], look.marker, color=look.light)
    if beyond:
        values = [o.flops for o in beyond], [o.parameters for o in beyond]
        axes.plot(*values, look.marker, color=look.light, mfc=theme.PAPER, label="not trained")
    inside = [one for one in study.valleys if one.inside]
    if inside:
        values = [one.budget for one in inside], [one.parameters for one in inside]
        axes.plot(*values, other.marker, color=other.light, label="parabola of one budget")
    axes.set_yscale("log")
    _ticks(axes.xaxis, lambda flops: f"{flops:.0e}".replace("+", ""))
    _ticks(axes.yaxis, short)
    axes.set_xlabel("budget C (FLOPs)")
    axes.set_ylabel("best size N* (active parameters)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    told = f"The best size over the budget; it grows as C^{study.exponent:.3g}"
    return picture(figure, name="frontier", label="frontier", description=told)


def _best(law: Law, study: ScalingStudy, flops: float) -> float:
    from tinyllm.studies.scaling.law import optimum

    return optimum(law, study.price, flops).parameters


def _loss(study: ScalingStudy, parameters: float, budget: float) -> float:
    return float(study.law.loss(parameters, budget / study.price.flops(parameters)))


def _spread(low: float, high: float, count: int = 200) -> list[float]:
    """Numbers from low to high, each the same multiple of the one before."""
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def _ticks(axis: Any, shown: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written as plain text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axis.set_minor_formatter(NullFormatter())


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    return figure, axes
