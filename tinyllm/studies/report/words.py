"""Sentences of a report."""

from tinyllm.errors import one_line
from tinyllm.studies.compare.results import Study
from tinyllm.studies.compare.statistics import LEVEL
from tinyllm.studies.compare.validation import METRIC
from tinyllm.studies.report import numbers
from tinyllm.studies.report.summary import ArmSummary, at_the_edge
from tinyllm.studies.report.tables import MATCHED


def at_a_glance(study: Study, arms: list[ArmSummary]) -> str:
    """Design of the comparison, in one line."""
    return " · ".join(
        [
            f"{_count(len(arms), 'arm')} × {_count(len(study.seeds), 'seed')}",
            budget(study),
            matching(study),
            f"reference: {one_line(study.reference)}",
            f"{'lower' if study.lower_is_better else 'higher'} {numbers.metric_name(study.metric)} is better",
        ]
    )


def budget(study: Study) -> str:
    """Budget of each run."""
    units = {"tokens": "training tokens", "flops": "training FLOPs"}
    if study.budget in units:
        return f"{numbers.brief(study.amount)} {units[study.budget]} per run"
    return f"{study.amount:g} {one_line(study.budget)} per run"


def matching(study: Study) -> str:
    """The quantity that is equal in all arms."""
    if study.match not in MATCHED:
        return "nothing matched"
    return f"equal {MATCHED[study.match][0]} (within {100 * study.tolerance:g} %)"


def how_many_seeds(study: Study) -> str:
    """Number of seeds and the reason for it."""
    note = one_line(study.seeds_note)
    return f"{_count(len(study.seeds), 'seed')}{f': {note}' if note else ''}".removesuffix(".") + "."


def how_matched(study: Study, arms: list[ArmSummary]) -> str:
    """What the matching solved for, and how well."""
    if study.match not in MATCHED:
        return "Nothing was matched: each arm has the size that its settings give it."
    mismatches = [abs(one.arm.mismatch) for one in arms if one.arm.mismatch is not None and not one.is_reference]
    by = f" by choosing {', '.join(map(one_line, study.match_by))}" if study.match_by else ""
    text = f"Each arm was matched to {one_line(study.reference)} in {MATCHED[study.match][0]}{by}"
    text += f", within {100 * study.tolerance:g} %."
    return text + (f" The largest mismatch is {100 * max(mismatches):.2f} %." if mismatches else "")


def how_tuned(arms: list[ArmSummary]) -> list[str]:
    """Whether all arms were tuned equally, and which ones chose a value at the edge of the tried range."""
    counts = {len(summary.arm.trials) for summary in arms}
    keys = ", ".join(dict.fromkeys(one_line(key) for summary in arms for key in summary.arm.tuned)) or "its settings"
    if len(counts) == 1:
        trials = f"Each arm had the same number of trials ({max(counts)})"
    else:
        trials = "The arms did not have the same number of trials"
    edges = [
        f"{summary.name}: the chosen {one_line(key)} ({numbers.plain_number(summary.arm.tuned[key])}) is at the edge of"
        " the tried range, so a better value may lie beyond it."
        for summary in arms
        for key in at_the_edge(summary.arm)
    ]
    return [f"{trials} for {keys}, before the final seeds were trained.", *edges]


def failures(arms: list[ArmSummary]) -> list[str]:
    """Runs without a result, with their errors."""
    return [
        f"{one_line(run.arm)}, seed {run.seed}: {one_line(run.status)}"
        + (f" – {one_line(run.error)}" if run.error else "")
        for summary in arms
        for run in summary.runs
        if run.status != "finished"
    ]


def statistics(study: Study, arms: list[ArmSummary]) -> list[str]:
    """How values, differences, intervals and p-values were computed."""
    tests = sum(summary.difference is not None and summary.difference.p is not None for summary in arms)
    of_run = f"the {study.metric} of its last evaluation"
    if study.metric == METRIC:
        of_run = "the bits per byte of its last checkpoint on the whole validation part of the shared text"
    elif study.evaluation:
        of_run = f"the {study.metric} of its last checkpoint, by python -m tinyllm.evaluate {study.evaluation}"
    return [
        f"The value of a run is {of_run}, after its last step. No checkpoint was selected.",
        "Runs are paired by seed: runs with the same seed see the same data in the same order. A difference is an arm's"
        f" value minus that of {one_line(study.reference)} for the same seed, so effects of the seed on both cancel.",
        f"Intervals are two-sided {100 * (1 - LEVEL):g} % Student's t intervals for the mean difference, and p-values"
        f" come from the paired t test. “Corrected” is Holm's correction for {_count(tests, 'comparison')} with the"
        f" reference: the probability of even one false “better” or “worse” is at most {100 * LEVEL:g} %. Intervals are"
        " not corrected.",
        "“±” after a mean is the standard deviation over seeds; after a difference, it is half the width of the"
        " interval.",
    ]


def limits() -> list[str]:
    """What the statistics do not cover."""
    return [
        "The statistics cover variation between seeds only, not other data, sizes, budgets or settings.",
        "Not seeing a difference does not mean that the arms are equal: there may be a difference too small for these"
        " seeds to show.",
        "The t interval assumes roughly normal differences, and few seeds cannot confirm that.",
        "All runs share one validation split. The intervals do not cover how well it represents other text.",
        "The means that define a Pareto front carry the same noise: arms that cannot be told apart may end up on either"
        " side of it.",
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
