"""Pictures with a row per arm (differences, seeds) and of the tuning trials."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tinyllm.errors import one_line
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.labels import shortened
from tinyllm.studies.report.summary import ArmSummary, reference_of, seed_differences, tried
from tinyllm.studies.report.svg import Picture, picture

_ROW, _EDGES = 0.44, 1.0
"""Height in inches of a row, and of everything else."""
_COLUMNS = 14.0, 116.0
"""Offsets in points of the columns of numbers to the right of the axes."""
_MAX_TICKS = 8
"""Up to this many tried values, each gets a tick of its own."""


def gid(summary: ArmSummary, title: str = "") -> str:
    """``gid`` of an artist that belongs to an arm, with a tooltip of the arm's name and ``title``; see :mod:`.svg`."""
    return f"arm:{summary.style}" + (f"|{summary.name}{title}" if title else "")


def forest(study: Study, arms: list[ArmSummary]) -> Picture | None:
    """Forest plot: each arm's difference from the reference with its 95 % interval, and those of single seeds."""
    reference = reference_of(arms)
    others = [summary for summary in arms if not summary.is_reference]
    if reference is None or not any(summary.difference and summary.difference.seeds for summary in others):
        return None
    figure, axes = _rows(others)
    axes.axvspan(-study.effect, study.effect, facecolor=theme.GRID, alpha=0.45, linewidth=0)
    axes.axvline(0, color=theme.INK, linewidth=1.2)
    for row, summary in enumerate(others):
        _difference(axes, row, summary, seed_differences(summary, reference))
    _finish_x_axis(axes)
    axes.set_xlabel(f"{numbers.metric_axis(study.metric)}, difference from {shortened(reference.arm.name)}")
    left, right_side = ("better", "worse") if study.lower_is_better else ("worse", "better")
    headings = [
        (0, 0.0, f"← {left}"),
        (1, 0.0, f"{right_side} →"),
        (1, _COLUMNS[0], "mean, 95 %"),
        (1, _COLUMNS[1], "p, corrected"),
    ]
    for x, right, text in headings:
        at = {"xycoords": "axes fraction", "xytext": (right, 6), "textcoords": "offset points"}
        axes.annotate(text, (x, 1), ha="right" if x and not right else "left", color=theme.SOFT, fontsize=9, **at)
    intervals = "; ".join(f"{summary.arm.name} {numbers.interval(summary.difference)}" for summary in others)
    description = f"Difference of each arm from {reference.arm.name}: {intervals}"
    return picture(figure, name="differences", label="differences", description=description)


def _difference(axes: Any, row: int, summary: ArmSummary, by_seed: dict[int, float]) -> None:
    style, difference = theme.style(summary.style), summary.difference
    if difference is None or not difference.seeds:
        _beside(axes, row, "no seed finished in both", points=_COLUMNS[0], gid=gid(summary))
        return
    for seed, value in by_seed.items():
        title = gid(summary, f", seed {seed}: {numbers.signed(value)}")
        axes.plot(value, row + 0.22, "o", ms=3.8, mfc="none", mec=style.light, mew=0.9, gid=title, zorder=4)
    if difference.low is not None and difference.high is not None:
        axes.plot([difference.low, difference.high], [row, row], color=style.light, lw=2.4, gid=gid(summary))
        for end in (difference.low, difference.high):
            axes.plot([end, end], [row - 0.1, row + 0.1], color=style.light, lw=1.6, gid=gid(summary))
    interval = numbers.interval(difference)
    title = gid(summary, f": {interval}, n = {len(difference.seeds)}")
    axes.plot(difference.mean, row, style.marker, ms=8, color=style.light, mec=theme.PAPER, mew=1, gid=title, zorder=5)
    for points, text in zip(_COLUMNS, (interval, numbers.probability(difference.p_corrected)), strict=True):
        _beside(axes, row, text, points=points, gid=gid(summary))


def seeds(study: Study, arms: list[ArmSummary]) -> Picture | None:
    """Metric of every finished run and mean of each arm; lines connect runs of one seed."""
    if not any(summary.finished for summary in arms):
        return None
    figure, axes = _rows(arms)
    for seed in study.seeds:
        pairs = [(summary.values[seed], row) for row, summary in enumerate(arms) if seed in summary.values]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), color=theme.GRID, lw=1, zorder=1)
    for row, summary in enumerate(arms):
        style = theme.style(summary.style)
        for seed, value in summary.values.items():
            title = gid(summary, f", seed {seed}: {numbers.value(value)}")
            axes.plot(value, row, style.marker, ms=6, mfc=theme.PAPER, mec=style.light, mew=1.3, gid=title, zorder=4)
        if summary.mean is not None:
            axes.plot([summary.mean] * 2, [row - 0.27, row + 0.27], color=style.light, lw=2.4, gid=gid(summary))
        text = numbers.with_sd(summary.mean, summary.sd) if summary.finished else "no run finished"
        _beside(axes, row, text, points=12, gid=gid(summary))
    _finish_x_axis(axes)
    axes.set_xlabel(numbers.metric_axis(study.metric))
    means = "; ".join(f"{summary.arm.name} {numbers.with_sd(summary.mean, summary.sd)}" for summary in arms)
    return picture(figure, name="seeds", label="seeds", description=f"The metric of every run: {means}")


def _rows(arms: list[ArmSummary]) -> tuple[Figure, Any]:
    """A figure with a labelled row for each arm, the first on top."""
    figure = Figure(figsize=(7.2, _EDGES + _ROW * len(arms)), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(len(arms) - 0.4, -0.6)  # inverted: the first arm on top
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(arms)), [shortened(summary.arm.name) for summary in arms])
    for text, summary in zip(axes.get_yticklabels(), arms, strict=True):
        text.set(color=theme.style(summary.style).light, fontweight="bold" if summary.is_reference else "normal")
    return figure, axes


def _beside(axes: Any, row: float, text: str, *, points: float, gid: str) -> None:
    """Write a label some points to the right of the axes."""
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, (1, row), xytext=(points, 0), va="center", fontsize=9, gid=gid, **at)


def _finish_x_axis(axes: Any) -> None:
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def tuning(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """One picture for each tuned numeric key: the metric of every trial, by arm."""
    keys = list(dict.fromkeys(key for summary in arms for key in summary.arm.tuned))
    return [drawn for key in keys if (drawn := _trials(study, arms, key)) is not None]


def _trials(study: Study, arms: list[ArmSummary], key: str) -> Picture | None:
    trials = [(summary, points) for summary in arms if (points := tried(summary.arm, key))]
    if not trials:
        return None
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    values = [x for _, points in trials for x, _ in points]
    if min(values) > 0 and max(values) / min(values) >= 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(set(values)) <= _MAX_TICKS:
        axes.set_xticks(sorted(set(values)))
        axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for summary, points in trials:
        style = theme.style(summary.style)
        axes.plot(*zip(*points, strict=True), color=style.light, lw=1.3, ls=style.dashes, gid=gid(summary))
        for x, y in points:
            chosen = summary.arm.tuned.get(key) == x
            looks: Any = {"ms": 8, "mfc": style.light} if chosen else {"ms": 5, "mfc": theme.PAPER}
            title = gid(summary, f", {key} {x:g}: {numbers.value(y)}{', chosen' if chosen else ''}")
            axes.plot(x, y, style.marker, mec=style.light, mew=1.2, gid=title, zorder=4, **looks)
        label = shortened(summary.arm.name)
        axes.plot([], [], color=style.light, ls=style.dashes, marker=style.marker, label=label)
    axes.set_xlabel(one_line(key))
    axes.set_ylabel(
        f"{'lowest' if study.trial_lower_is_better else 'highest'} {numbers.metric_axis(study.trial_metric)}"
    )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    chosen_values = "; ".join(f"{one.arm.name} {numbers.plain_number(one.arm.tuned.get(key))}" for one, _ in trials)
    name = "tuning_" + "".join(letter if letter.isalnum() else "_" for letter in key)
    return picture(figure, name=name, label=key, description=f"Trials of {key}; chosen: {chosen_values}")
