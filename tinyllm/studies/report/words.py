"""What a report says in sentences."""

from tinyllm.studies.compare.results import Study
from tinyllm.studies.compare.statistics import LEVEL
from tinyllm.studies.report import numbers
from tinyllm.studies.report.summary import ArmSummary
from tinyllm.studies.report.tables import MATCHED
from tinyllm.studies.report.tuning import at_the_edge


def at_a_glance(study: Study, arms: list[ArmSummary]) -> str:
    """How the comparison was laid out, in one line."""
    metric = numbers.metric_name(study.metric)
    parts = [f"{_count(len(arms), 'arm')} × {_count(len(study.seeds), 'seed')}", budget(study), matching(study)]
    return " · ".join([*parts, f"reference: {numbers.line(study.reference)}", f"less {metric} is better"])


def budget(study: Study) -> str:
    """What each run got."""
    units = {"tokens": "training tokens", "flops": "training FLOPs"}
    if study.budget in units:
        return f"{numbers.brief(study.amount)} {units[study.budget]} per run"
    return f"{study.amount:g} {numbers.line(study.budget)} per run"


def matching(study: Study) -> str:
    """What the arms have equal."""
    if study.match not in MATCHED:
        return "nothing matched"
    return f"equal {MATCHED[study.match][0]} (within {100 * study.tolerance:g} %)"


def how_many_seeds(study: Study) -> str:
    """The number of seeds, and how it came about."""
    note = numbers.line(study.seeds_note)
    return f"{_count(len(study.seeds), 'seed')}{': ' if note else ''}{note}{'' if note.endswith('.') else '.'}"


def how_matched(study: Study, arms: list[ArmSummary]) -> str:
    """What was solved for, and how well."""
    if study.match not in MATCHED:
        return "Nothing was matched: the arms are as their settings make them, and differ in size."
    off = [abs(one.arm.mismatch) for one in arms if one.arm.mismatch is not None and not one.is_reference]
    by = f" by choosing {', '.join(map(numbers.line, study.match_by))}" if study.match_by else ""
    text = f"Each arm was given the {MATCHED[study.match][0]} of {numbers.line(study.reference)}{by}"
    text += f", within {100 * study.tolerance:g} %."
    return text + (f" The largest mismatch is {100 * max(off):.2f} %." if off else "")


def how_tuned(arms: list[ArmSummary]) -> list[str]:
    """Whether tuning was fair, and whether its ranges were wide enough."""
    counts = {len(one.arm.trials) for one in arms}
    keys = ", ".join(dict.fromkeys(numbers.line(key) for one in arms for key in one.arm.tuned))
    equal = (
        f"Each arm had the same number of trials ({max(counts)})"
        if len(counts) == 1
        else ("The arms did not have the same number of trials")
    )
    said = [f"{equal} for {keys or 'its settings'}, before the final seeds were trained."]
    for one in arms:
        for key in at_the_edge(one.arm):
            chosen = numbers.plain_number(one.arm.tuned[key])
            said.append(
                f"{numbers.line(one.arm.name)}: the best {numbers.line(key)} ({chosen}) lies at the edge of what was"
                " tried, so a better one may lie beyond."
            )
    return said


def failures(arms: list[ArmSummary]) -> list[str]:
    """Runs that have no figure, by name, with what went wrong."""
    return [
        f"{numbers.line(run.arm)}, seed {run.seed}: {numbers.line(run.status)}"
        + (f" – {numbers.line(run.error)}" if run.error else "")
        for one in arms
        for run in one.runs
        if run.status != "finished"
    ]


def statistics(study: Study, arms: list[ArmSummary]) -> list[str]:
    """How the intervals and p-values came about."""
    others = sum(one.difference is not None and one.difference.p is not None for one in arms)
    reference = numbers.line(study.reference)
    return [
        f"A run's figure is the {study.metric} of its last evaluation, after its last step; no checkpoint was picked.",
        "Runs are paired by seed: runs of one seed see the same data in the same order. A difference is an arm's"
        f" figure minus that of {reference} with the same seed, so what a seed does to both drops out.",
        f"The interval is Student's t for the mean of these differences, {100 * (1 - LEVEL):g} %, two-sided; the"
        " p-value is that of the paired t test. “Corrected” is after Holm over"
        f" {_count(others, 'comparison')} with the reference: the chance of even one false “better” or “worse” is at"
        f" most {100 * LEVEL:g} %. The intervals are not corrected.",
        "“±” behind a mean is the standard deviation over the seeds; behind a difference it is half of the interval.",
    ]


def limits(study: Study) -> list[str]:
    """What the statistics do not say."""
    return [
        "They cover what changes from seed to seed only: not other data, sizes, budgets or settings.",
        "“No difference can be seen” is not “equal”: a difference below what these seeds can show may be there.",
        "With few seeds the t interval leans on differences that are roughly normal, which so few cannot show.",
        "All runs share one validation split. How well it stands for other text is not in the interval.",
        "Means on a Pareto front carry the same noise: two arms that cannot be told apart may stand on either side of"
        " it.",
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
