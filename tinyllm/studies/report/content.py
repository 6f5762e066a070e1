"""What stands in a report, in order; how it looks is the page's and the Markdown's."""

from dataclasses import dataclass

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers, tables, words
from tinyllm.studies.report.blocks import Block, Code, Figures, Folded, Points, Section, Text
from tinyllm.studies.report.plots import forest, seeds
from tinyllm.studies.report.plots_curves import curves
from tinyllm.studies.report.plots_pareto import PRICES, fronts, on_front
from tinyllm.studies.report.plots_tuning import tuning
from tinyllm.studies.report.summary import ArmSummary, summaries
from tinyllm.studies.report.svg import Picture, drawing
from tinyllm.utils.text import plain_data


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is shown of a study."""

    question: str
    glance: str
    verdicts: list[str]
    notes: list[str]
    arms: list[ArmSummary]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [one for block in blocks if isinstance(block, Figures) for one in block.pictures]


def report(study: Study) -> Report:
    """Lay out the whole report and draw its pictures; texts are shown, never obeyed (:func:`plain_data`)."""
    study = plain_data(study)
    arms = summaries(study)
    with drawing():
        sections = [
            _answer(study, arms),
            _arms(study, arms),
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
        question=numbers.line(study.question) or "Comparison",
        glance=words.at_a_glance(study, arms),
        verdicts=[numbers.line(one) for one in study.verdicts],
        notes=[numbers.line(one) for one in study.notes],
        arms=arms,
        sections=[section for section in sections if section.blocks],
    )


def _answer(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = forest(study, arms)
    caption = (
        f"Difference of the mean {numbers.metric_name(study.metric)} to {numbers.line(study.reference)}: bars are 95 %"
        " intervals (paired by seed, not corrected), small circles the single seeds, p is corrected for the number of"
        f" arms. The grey band, ±{study.effect:g}, is less than was asked to be seen. An interval that crosses zero"
        " leaves the sign open."
    )
    blocks: list[Block] = [Figures(pictures=[drawn], caption=caption)] if drawn else []
    return Section(name="differences", title="Differences", blocks=blocks)


def _arms(study: Study, arms: list[ArmSummary]) -> Section:
    text = (
        "FLOPs are the modules' own accounting (training: three times the forward pass), KV bytes those of the cache in"
        " bf16 for one position. Peak memory is the most of an arm's runs, tokens/s the median of its runs; decoding is"
        " of one sequence, greedy."
    )
    bold = "Bold differences are significant after the correction."
    return Section(name="arms", title="Arms", blocks=[tables.arms_table(study, arms), Text(text=f"{text} {bold}")])


def _curves(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = curves(study, arms)
    caption = (
        "Lines are means over the finished seeds, bands reach from the lowest to the highest seed. An arm has a point"
        " where all of its finished seeds were evaluated; over wall time, evaluations included, it stands at the mean"
        " of their times."
    )
    blocks: list[Block] = [Figures(pictures=drawn, caption=caption, choice="Over", name="axis")] if drawn else []
    return Section(name="curves", title="Curves", blocks=blocks)


def _price(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = fronts(study, arms)
    if not drawn:
        return Section(name="price", title="Quality and its price")
    caption = (
        "Towards the lower left is better. Filled: on the front, no other arm is better on one axis and no worse on the"
        " other. Hollow: beaten by another. Whiskers are ±1 standard deviation over the seeds; the front is that of the"
        " means."
    )
    said = []
    for price, (name, _) in PRICES.items():
        names = [numbers.line(one.arm.name) for one in arms if one.arm.name in on_front(arms, price)]
        if any(one.name == f"pareto_{price}" for one in drawn):
            said.append(f"On the front against {name}: {', '.join(names)}.")
    blocks: list[Block] = [Figures(pictures=drawn, caption=caption), Points(items=said)]
    return Section(name="price", title="Quality and its price", blocks=blocks)


def _seeds(study: Study, arms: list[ArmSummary]) -> Section:
    drawn = seeds(study, arms)
    caption = (
        "One mark for each run, a bar for each arm's mean (± standard deviation). Grey lines join runs of one seed."
    )
    blocks: list[Block] = [Text(text=words.how_many_seeds(study))]
    blocks += [Figures(pictures=[drawn], caption=caption)] if drawn else []
    return Section(name="seeds", title="Seeds", blocks=[*blocks, tables.seeds_table(study, arms)])


def _matching(study: Study, arms: list[ArmSummary]) -> Section:
    text = f"{words.how_matched(study, arms)} Budget: {words.budget(study)}."
    return Section(
        name="matching", title="What was matched", blocks=[Text(text=text), tables.matching_table(study, arms)]
    )


def _tuning(study: Study, arms: list[ArmSummary]) -> Section:
    if not any(one.arm.tuned or one.arm.trials for one in arms):
        return Section(name="tuning", title="Tuning")
    blocks: list[Block] = [Points(items=words.how_tuned(arms))]
    caption = (
        f"Every trial that finished, by the lowest {numbers.metric_name(study.trial_metric)} of its evaluations;"
        " the large filled marks were chosen."
    )
    if drawn := tuning(study, arms):
        blocks.append(Figures(pictures=drawn, caption=caption))
    return Section(name="tuning", title="Tuning", blocks=[*blocks, tables.tuning_table(study, arms)])


def _probes(arms: list[ArmSummary]) -> Section:
    if not any(one.arm.probes for one in arms):
        return Section(name="probes", title="Probes")
    text = "Accuracy on small synthetic tasks (python -m tinyllm.probe): hints at what an arm can do, nothing more."
    return Section(name="probes", title="Probes", blocks=[Text(text=text), tables.probes_table(arms)])


def _runs(study: Study, arms: list[ArmSummary]) -> Section:
    lost = words.failures(arms)
    blocks: list[Block] = []
    if lost:
        blocks += [Text(text="Left out of every figure:"), Points(items=lost, tone="warning")]
    return Section(name="runs", title="Runs", blocks=[*blocks, tables.runs_table(study, arms)])


def _statistics(study: Study, arms: list[ArmSummary]) -> Section:
    blocks: list[Block] = [
        Points(items=words.statistics(study, arms)),
        Text(text="What they do not say:"),
        Points(items=words.limits(study)),
    ]
    if study.differences:
        blocks.insert(1, tables.differences_table(study, arms))
    return Section(name="statistics", title="How the statistics were done", blocks=blocks)


def _reproduce(study: Study, arms: list[ArmSummary]) -> Section:
    runs = [run for one in arms for run in one.runs]
    blocks: list[Block] = [Text(text="The whole comparison:"), Code(text=numbers.plain(study.command))]
    if runs:
        commands = "\n".join(numbers.line(run.command) for run in runs)
        blocks.append(Code(text=commands, title="The command of every run"))
    blocks.append(tables.provenance_table(study))
    if any(run.sha256 for run in runs):
        title = "SHA-256 of the files that the figures come from"
        blocks.append(Folded(title=title, table=tables.hashes_table(arms)))
    return Section(name="reproduce", title="To do it again", blocks=blocks)
