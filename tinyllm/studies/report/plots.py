"""Pictures of what the seeds say: the differences to the reference, and every run's figure."""

from typing import Any

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.labels import shortened
from tinyllm.studies.report.summary import ArmSummary, seed_differences
from tinyllm.studies.report.svg import Picture, picture

_ROW, _EDGES = 0.44, 1.0
"""Inches for an arm, and for everything else."""
_COLUMNS = 14.0, 116.0
"""Where figures stand to the right of the axes, in points."""


def rows(count: int, *, width: float = 7.2) -> tuple[Any, Any]:
    """A figure and its axes with a row for each arm, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, _EDGES + _ROW * count), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(count - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def name_rows(axes: Any, arms: list[ArmSummary]) -> None:
    """Write the arms' names beside their rows, each in its colour."""
    axes.set_yticks(range(len(arms)), [shortened(one.arm.name) for one in arms])
    for text, one in zip(axes.get_yticklabels(), arms, strict=True):
        text.set(color=theme.style(one.style).light, fontweight="bold" if one.is_reference else "normal")


def forest(study: Study, arms: list[ArmSummary]) -> Picture | None:
    """Each arm's difference to the reference with its 95 % interval, and the differences of the single seeds."""
    reference = next((one for one in arms if one.is_reference), None)
    others = [one for one in arms if not one.is_reference]
    if reference is None or not any(one.difference and one.difference.seeds for one in others):
        return None
    figure, axes = rows(len(others))
    axes.axvspan(-study.effect, study.effect, facecolor=theme.GRID, alpha=0.45, linewidth=0)
    axes.axvline(0, color=theme.INK, linewidth=1.2)
    for row, one in enumerate(others):
        _difference(axes, row, one, seed_differences(one, reference))
    name_rows(axes, others)
    _room(axes)
    axes.set_xlabel(f"{numbers.metric_axis(study.metric)}, difference to {shortened(reference.arm.name)}")
    heads = [
        (0, 0.0, "← better"),
        (1, 0.0, "worse →"),
        (1, _COLUMNS[0], "mean, 95 %"),
        (1, _COLUMNS[1], "p, corrected"),
    ]
    for x, right, text in heads:
        at = {"xycoords": "axes fraction", "xytext": (right, 6), "textcoords": "offset points"}
        axes.annotate(text, (x, 1), ha="right" if x and not right else "left", color=theme.SOFT, fontsize=9, **at)
    return picture(
        figure,
        name="differences",
        label="differences",
        description=f"Difference of each arm to {reference.arm.name}: "
        + "; ".join(f"{one.arm.name} {numbers.interval(one.difference)}" for one in others),
    )


def _difference(axes: Any, row: int, one: ArmSummary, by_seed: dict[int, float]) -> None:
    look, found = theme.style(one.style), one.difference
    gid = f"arm:{one.style}"
    if found is None or not found.seeds:
        beside(axes, row, "no seed finished in both", points=_COLUMNS[0], gid=gid)
        return
    name = numbers.line(one.arm.name)
    for seed, value in by_seed.items():
        title = f"{gid}|{name}, seed {seed}: {numbers.signed(value)}"
        axes.plot(value, row + 0.22, "o", ms=3.8, mfc="none", mec=look.light, mew=0.9, gid=title, zorder=4)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [row, row], color=look.light, lw=2.4, gid=gid)
        for end in (found.low, found.high):
            axes.plot([end, end], [row - 0.1, row + 0.1], color=look.light, lw=1.6, gid=gid)
    title = f"{gid}|{name}: {numbers.interval(found)}, n = {len(found.seeds)}"
    axes.plot(found.mean, row, look.marker, ms=8, color=look.light, mec=theme.PAPER, mew=1, gid=title, zorder=5)
    for column, text in zip(_COLUMNS, (numbers.interval(found), numbers.probability(found.p_corrected)), strict=True):
        beside(axes, row, text, points=column, gid=gid)


def beside(axes: Any, row: float, text: str, *, points: float = 12, **looks: Any) -> None:
    """Write something to the right of the axes, some points away from them."""
    looks = {"va": "center", "fontsize": 9, "annotation_clip": False} | looks
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (1, row), xytext=(points, 0), **at, **looks)


def seeds(study: Study, arms: list[ArmSummary]) -> Picture | None:
    """The metric of every finished run, the mean of each arm, and lines between runs of one seed."""
    if not any(one.finished for one in arms):
        return None
    figure, axes = rows(len(arms))
    for seed in study.seeds:
        pairs = [(one.values[seed], row) for row, one in enumerate(arms) if seed in one.values]
        axes.plot(*zip(*pairs, strict=True), color=theme.GRID, lw=1, zorder=1) if pairs else None
    for row, one in enumerate(arms):
        look = theme.style(one.style)
        for seed, value in one.values.items():
            title = f"arm:{one.style}|{numbers.line(one.arm.name)}, seed {seed}: {numbers.value(value)}"
            axes.plot(value, row, look.marker, ms=6, mfc=theme.PAPER, mec=look.light, mew=1.3, gid=title, zorder=4)
        if one.mean is not None:
            axes.plot([one.mean] * 2, [row - 0.27, row + 0.27], color=look.light, lw=2.4, gid=f"arm:{one.style}")
        said = numbers.with_sd(one.mean, one.sd) if one.finished else "no run finished"
        beside(axes, row, said, gid=f"arm:{one.style}")
    name_rows(axes, arms)
    _room(axes)
    axes.set_xlabel(numbers.metric_axis(study.metric))
    return picture(
        figure,
        name="seeds",
        label="seeds",
        description="The metric of every run: "
        + "; ".join(f"{one.arm.name} {numbers.with_sd(one.mean, one.sd)}" for one in arms),
    )


def _room(axes: Any) -> None:
    """A little more room on both sides, and no more ticks than can be read."""
    from matplotlib.ticker import MaxNLocator

    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
