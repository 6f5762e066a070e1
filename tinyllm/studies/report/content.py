"""Content of a report, in order; the page and the Markdown file decide how it looks."""

from dataclasses import dataclass
from functools import partial

from tinyllm.errors import one_line
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, tables, words
from tinyllm.studies.report.blocks import Block, Code, Figures, Folded, Points, Section, Text
from tinyllm.studies.report.plots import forest, seeds, tuning
from tinyllm.studies.report.plots_curves import curves
from tinyllm.studies.report.plots_pareto import PRICES, front_names, fronts
from tinyllm.studies.report.summary import ArmSummary, summaries
from tinyllm.studies.report.svg import Picture, drawing
from tinyllm.utils.text import escape_control_in


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """A name in the legend of a page, and the number of its colour, marker and line style."""

    name: str
    style: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report shows of a study."""

    kind: str
    """What was studied, above the title."""
    question: str
    glance: str
    verdicts: list[str]
    notes: list[str]
    legend: list[LegendEntry]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all sections, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [picture for block in blocks if isinstance(block, Figures) for picture in block.pictures]


def report(study: Study) -> Report:
    """Lay out a report and draw its pictures. Control characters in the study's strings are spelled out."""
    study = escape_control_in(study)
    arms = summaries(study)
    with drawing():
        sections = [
            _differences(study, arms),
            _arms(study, arms),
            _sources(arms),
            _curves(study, arms),
            _price(study, arms),
            _seeds(study, arms),
            _matching(study, arms),
            _tuning(study, arms),
            _probes(arms),
            _runs(study, arms),
            _statistics(study, arms),
            _reproduce(study, arms),
        ]
    return Report(
        kind="tinyllm comparison",
        question=one_line(study.question) or "Comparison",
        glance=words.at_a_glance(study, arms),
        verdicts=[one_line(verdict) for verdict in study.verdicts],
        notes=[one_line(note) for note in study.notes],
        legend=[LegendEntry(name=arm.arm.name, style=arm.style) for arm in arms],
        sections=[section for section in sections if section.blocks],
    )


def _differences(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = forest(study, arms)
    caption = (
        f"Difference of each arm's mean {numbers.metric_name(study.metric)} from that of {one_line(study.reference)}."
        " Bars are 95 % intervals (paired by seed, not corrected), small circles are single seeds, and p is corrected"
        f" for the number of arms. The grey band covers differences below ±{study.effect:g}, the smallest one worth"
        " detecting. An interval that crosses zero leaves the sign open."
    )
    blocks: list[Block] = [Figures(pictures=[drawn], caption=caption)] if drawn else []
    return Section(name="differences", title="Differences", blocks=blocks)


def _arms(study: Study, arms: list[ArmSummary]) -> Section:
    text = (
        "Every module counts its own FLOPs; training is three times the forward pass. KV bytes are the cache of one"
        " position in bf16. Peak memory is the maximum over an arm's runs, tokens/s the median. Decode tokens/s is"
        " measured on one sequence with greedy decoding. Differences in bold are significant after the correction."
    )
    return Section(name="arms", title="Arms", blocks=[tables.arms_table(study, arms), Text(text=text)])


def _sources(arms: list[ArmSummary]) -> Section:
    table = tables.sources_table(arms)
    return Section(name="sources", title="Sources", blocks=[table] if table else [])


def _curves(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = curves(study, arms)
    caption = (
        "Lines are means over the finished seeds; bands span the lowest to the highest seed. An arm has a point where"
        " all of its finished seeds were evaluated. Wall time includes evaluation, and points stand at the seeds' mean"
        " time."
    )
    blocks: list[Block] = [Figures(pictures=drawn, caption=caption, choice="Over", name="axis")] if drawn else []
    return Section(name="curves", title="Curves", blocks=blocks)


def _price(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = fronts(study, arms)
    blocks: list[Block] = []
    if drawn:
        corner = "Lower left" if study.lower_is_better else "Upper left"
        caption = (
            f"{corner} is better. Filled marks are on the Pareto front: no other arm is better on one axis and at"
            " least as good on the other. Hollow marks are dominated. Whiskers are ±1 standard deviation over seeds;"
            " the front is that of the means."
        )
        names = {picture.name for picture in drawn}
        names_on_front = partial(front_names, arms, lower_is_better=study.lower_is_better)
        points = [
            f"On the front for {label}: {', '.join(map(one_line, names_on_front(price)))}."
            for price, (label, _) in PRICES.items()
            if f"pareto_{price}" in names
        ]
        blocks = [Figures(pictures=drawn, caption=caption), Points(items=points)]
    return Section(name="price", title="Quality and cost", blocks=blocks)


def _seeds(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = seeds(study, arms)
    caption = "One mark per run, a bar at each arm's mean (± standard deviation). Grey lines connect runs of one seed."
    blocks: list[Block] = [Text(text=words.how_many_seeds(study))]
    blocks += [Figures(pictures=[drawn], caption=caption)] if drawn else []
    return Section(name="seeds", title="Seeds", blocks=[*blocks, tables.seeds_table(study, arms)])


def _matching(study: Study, arms: list[ArmSummary]) -> Section:
    text = Text(text=f"{words.how_matched(study, arms)} Budget: {words.budget(study)}.")
    return Section(name="matching", title="Matching and budget", blocks=[text, tables.matching_table(study, arms)])


def _tuning(study: Study, arms: list[ArmSummary]) -> Section:
    if not any(summary.arm.tuned or summary.arm.trials for summary in arms):
        return Section(name="tuning", title="Tuning")
    blocks: list[Block] = [Points(items=words.how_tuned(arms))]
    if drawn := tuning(study, arms):
        metric = numbers.metric_name(study.trial_metric)
        best = "lowest" if study.trial_lower_is_better else "highest"
        caption = f"The {best} {metric} of every finished trial. Large filled marks are the chosen values."
        blocks.append(Figures(pictures=drawn, caption=caption))
    return Section(name="tuning", title="Tuning", blocks=[*blocks, tables.tuning_table(study, arms)])


def _probes(arms: list[ArmSummary]) -> Section:
    if not any(summary.arm.probes for summary in arms):
        return Section(name="probes", title="Probes")
    text = "Accuracy on small synthetic tasks (python -m tinyllm.probe): a hint at what an arm can do, no more."
    return Section(name="probes", title="Probes", blocks=[Text(text=text), tables.probes_table(arms)])


def _runs(study: Study, arms: list[ArmSummary]) -> Section:
    blocks: list[Block] = []
    if failures := words.failures(arms):
        blocks = [Text(text="These runs are left out of all results:"), Points(items=failures, tone="warning")]
    return Section(name="runs", title="Runs", blocks=[*blocks, tables.runs_table(study, arms)])


def _statistics(study: Study, arms: list[ArmSummary]) -> Section:
    blocks: list[Block] = [Points(items=words.statistics(study, arms))]
    if study.differences:
        blocks.append(tables.differences_table(study, arms))
    blocks += [Text(text="Limitations:"), Points(items=words.limits())]
    return Section(name="statistics", title="Statistics", blocks=blocks)


def _reproduce(study: Study, arms: list[ArmSummary]) -> Section:
    runs = [run for summary in arms for run in summary.runs]
    blocks: list[Block] = [Text(text="The whole comparison:"), Code(text=study.command)]
    if runs:
        commands = "\n".join(one_line(run.command) for run in runs)
        blocks.append(Code(text=commands, title="Command of every run"))
    blocks.append(tables.provenance_table(study.provenance))
    if any(run.sha256 for run in runs):
        title = "SHA-256 of the files that the results were read from"
        blocks.append(Folded(title=title, table=tables.hashes_table(arms)))
    return Section(name="reproduce", title="Reproduce", blocks=blocks)
