"""Pictures of what the trials of the tuning gave."""

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.labels import shortened
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.svg import Picture, picture
from tinyllm.studies.report.tuning import tried

_TICKS = 8
"""Values that were tried at most, for each to be written on the axis."""


def tuning(study: Study, arms: list[ArmSummary]) -> list[Picture]:
    """For each tuned key with numbers a picture: the metric of every trial, by arm."""
    keys = list(dict.fromkeys(key for one in arms for key in one.arm.tuned))
    return [one for key in keys if (one := _tuning(study, arms, key)) is not None]


def _tuning(study: Study, arms: list[ArmSummary], key: str) -> Picture | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    found = [(one, points) for one in arms if (points := tried(one.arm, key))]
    if not found:
        return None
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    values = [x for _, points in found for x, _ in points]
    if min(values) > 0 and max(values) / min(values) >= 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(set(values)) <= _TICKS:
        axes.set_xticks(sorted(set(values)))
        axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for one, points in found:
        look, gid = theme.style(one.style), f"arm:{one.style}"
        axes.plot(*zip(*points, strict=True), color=look.light, lw=1.3, ls=look.dashes, gid=gid)
        for x, y in points:
            chosen = one.arm.tuned.get(key) == x
            title = f"{gid}|{numbers.line(one.arm.name)}, {key} {x:g}: {numbers.value(y)}{', chosen' if chosen else ''}"
            fill = look.light if chosen else theme.PAPER
            axes.plot(x, y, look.marker, ms=8 if chosen else 5, mfc=fill, mec=look.light, mew=1.2, gid=title, zorder=4)
        axes.plot([], [], color=look.light, ls=look.dashes, marker=look.marker, label=shortened(one.arm.name))
    axes.set_xlabel(numbers.line(key))
    axes.set_ylabel(f"lowest {numbers.metric_axis(study.trial_metric)}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    chosen_values = "; ".join(f"{one.arm.name} {numbers.plain_number(one.arm.tuned.get(key))}" for one, _ in found)
    name = "tuning_" + "".join(letter if letter.isalnum() else "_" for letter in key)
    return picture(figure, name=name, label=key, description=f"The trials of {key}; chosen: {chosen_values}")
