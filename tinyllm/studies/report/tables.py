"""Tables of a report."""

from collections.abc import Callable, Mapping
from typing import Any

from tinyllm.errors import one_line
from tinyllm.programs.cost import ModelCost
from tinyllm.studies.compare.results import Study
from tinyllm.studies.compare.statistics import LEVEL, POWER
from tinyllm.studies.report import numbers
from tinyllm.studies.report.blocks import Cell, DataTable, number_cell, text_cell
from tinyllm.studies.report.summary import ArmSummary, at_the_edge, reference_of, seed_differences, source_values
from tinyllm.utils.text import duration

MATCHED: dict[str, tuple[str, Callable[[ModelCost], int]]] = {
    "params": ("parameters", lambda account: account.parameters),
    "active_params": ("active parameters", lambda account: account.active_parameters),
    "flops": ("training FLOPs per token", lambda account: account.flops_per_token),
    "kv_bytes": ("KV bytes per token", lambda account: account.kv_bytes_per_token),
}
"""Values of ``match``: name and quantity."""


def name_cell(summary: ArmSummary) -> Cell:
    """An arm's name, with its colour."""
    return Cell(text=summary.name, sort=summary.name, arm=summary.style, strong=summary.is_reference)


def arms_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Result and cost of each arm."""
    headings = ["arm", f"{numbers.metric_name(study.metric)} ± sd", "difference, 95\u00a0%", "p, corrected", "seeds"]
    headings += ["parameters", "active", "FLOPs per token", "KV bytes per token"]
    headings += ["peak memory", "tokens/s", "decode tokens/s"]
    return DataTable(headings=headings, rows=[_arm_row(summary) for summary in arms])


def _arm_row(summary: ArmSummary) -> list[Cell]:
    account, difference = summary.arm.account, summary.difference
    p = difference.p_corrected if difference else None
    mean = difference.mean if difference and difference.seeds else None
    significant = p is not None and p < LEVEL
    compared = [
        Cell(text=numbers.interval(difference), sort=mean, strong=significant),
        number_cell(p, numbers.probability, strong=significant),
    ]
    return [
        name_cell(summary),
        Cell(text=numbers.with_sd(summary.mean, summary.sd), sort=summary.mean),
        *([Cell(text="reference", sort=0.0), Cell(text="")] if summary.is_reference else compared),
        number_cell(len(summary.finished), str),
        number_cell(account.parameters, numbers.whole),
        number_cell(account.active_parameters, numbers.whole),
        number_cell(account.flops_per_token, numbers.whole),
        number_cell(account.kv_bytes_per_token, numbers.whole),
        number_cell(summary.peak_memory_bytes, numbers.size),
        number_cell(summary.tokens_per_s, numbers.rate),
        number_cell(summary.arm.decode_tokens_per_s, numbers.rate),
    ]


def sources_table(arms: list[ArmSummary]) -> DataTable | None:
    """The validation of each source of a mixture at the last evaluation; None if no arm trains on a mixture."""
    metric = "bpb" if any(source_values(summary, "bpb") for summary in arms) else "loss"
    by_arm = {summary.name: source_values(summary, metric) for summary in arms}
    names = list(dict.fromkeys(source for values in by_arm.values() for source in values))
    if not names:
        return None
    rows = [
        [name_cell(summary), *(number_cell(by_arm[summary.name].get(name), numbers.value) for name in names)]
        for summary in arms
    ]
    unit = "bits per byte" if metric == "bpb" else "nats per token"
    return DataTable(
        headings=["arm", *map(one_line, names)],
        rows=rows,
        caption=f"Validation of each source in {unit} at the last evaluation, averaged over the finished seeds.",
    )


def seeds_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Each seed's value, with its difference from the reference's value for the same seed."""
    reference = reference_of(arms)
    rows = []
    for summary in arms:
        differences = seed_differences(summary, reference)
        cells = []
        for seed in study.seeds:
            text = numbers.value(summary.values.get(seed))
            if seed in differences:
                text += f" ({numbers.signed(differences[seed])})"
            cells.append(Cell(text=text, sort=summary.values.get(seed)))
        rows.append([name_cell(summary), *cells])
    return DataTable(
        headings=["arm", *(f"seed {seed}" for seed in study.seeds)],
        rows=rows,
        caption="In parentheses: difference from the reference's value for the same seed.",
    )


def differences_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Test statistics of each difference."""
    headings = ["arm", "pairs", "mean", "sd", "95 % interval", "p", "p, corrected", "detectable", "seeds needed"]
    rows = []
    for summary in arms:
        if (difference := summary.difference) is None or summary.is_reference:
            continue
        bounds = "–"
        if difference.low is not None and difference.high is not None:
            bounds = f"{numbers.signed(difference.low)} to {numbers.signed(difference.high)}"
        rows.append(
            [
                name_cell(summary),
                number_cell(len(difference.seeds), str),
                number_cell(difference.mean if difference.seeds else None, numbers.signed),
                number_cell(difference.sd, numbers.value),
                Cell(text=bounds, sort=difference.low),
                number_cell(difference.p, numbers.probability),
                number_cell(difference.p_corrected, numbers.probability),
                number_cell(difference.detectable, numbers.value),
                number_cell(difference.seeds_needed, numbers.whole),
            ]
        )
    return DataTable(
        headings=headings,
        rows=rows,
        caption=f"“Detectable” is the difference that this many pairs show with a probability of {100 * POWER:g} %."
        f" “Seeds needed” is the number of seeds that show a difference of {study.effect:g} with that probability. Both"
        " take the sd as known, although few seeds only estimate it.",
    )


def matching_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Settings of each arm, what the matching solved for, and how close it came."""
    matched = MATCHED.get(study.match)
    timed = study.budget == "minutes"
    headings = ["arm", "settings", "solved", *([matched[0], "mismatch"] if matched else [])]
    headings += ["steps", "tokens per run", "FLOPs per run", *(["minutes trained"] if timed else [])]
    rows = []
    for summary in arms:
        arm = summary.arm
        solved = ", ".join(f"{key}={value}" for key, value in arm.solved.items())
        row = [name_cell(summary), text_cell(" ".join(arm.settings)), text_cell(solved)]
        if matched:
            row += [number_cell(matched[1](arm.account), numbers.whole), number_cell(arm.mismatch, numbers.percent)]
        row += [number_cell(arm.max_steps, numbers.whole), number_cell(arm.tokens, numbers.whole)]
        row.append(number_cell(arm.flops, numbers.brief))
        if timed:
            row.append(number_cell(summary.minutes, numbers.rate))
        rows.append(row)
    return DataTable(headings=headings, rows=rows)


def tuning_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Number of trials of each arm, and the values chosen by them."""
    best = f"best {numbers.metric_name(study.trial_metric)}"
    best_of = min if study.trial_lower_is_better else max
    rows = []
    for summary in arms:
        arm = summary.arm
        if not arm.tuned and not arm.trials:
            continue
        edges = at_the_edge(arm)
        values = [trial["value"] for trial in arm.trials if trial.get("value") is not None]
        failed = len(arm.trials) - len(values)
        chosen = ", ".join(f"{key}={numbers.plain_number(value)}" for key, value in arm.tuned.items())
        rows.append(
            [
                name_cell(summary),
                Cell(text=f"{len(arm.trials)}" + (f" ({failed} failed)" if failed else ""), sort=len(arm.trials)),
                text_cell(chosen),
                number_cell(best_of(values, default=None), numbers.value),
                text_cell(f"yes: {', '.join(edges)}" if edges else "no", strong=bool(edges)),
            ]
        )
    return DataTable(headings=["arm", "trials", "chosen", best, "at the edge of the tried range"], rows=rows)


def probes_table(arms: list[ArmSummary]) -> DataTable:
    """Accuracy of each arm on each synthetic task."""
    tasks = list(dict.fromkeys(task for summary in arms for task in summary.arm.probes))
    rows = [
        [name_cell(summary), *(number_cell(summary.arm.probes.get(task), numbers.accuracy) for task in tasks)]
        for summary in arms
    ]
    return DataTable(headings=["arm", *map(one_line, tasks)], rows=rows)


def runs_table(study: Study, arms: list[ArmSummary]) -> DataTable:
    """Status, result, speed and directory of every run."""
    metric = numbers.metric_name(study.metric)
    rows = [
        [
            name_cell(summary),
            number_cell(run.seed, str),
            text_cell(run.status, strong=run.status != "finished"),
            number_cell(run.value, numbers.value),
            number_cell(run.tokens_per_s, numbers.rate),
            number_cell(run.peak_memory_bytes, numbers.size),
            number_cell(run.seconds, duration),
            text_cell(run.path),
        ]
        for summary in arms
        for run in summary.runs
    ]
    headings = ["arm", "seed", "status", metric, "tokens/s", "peak memory", "duration", "directory"]
    return DataTable(headings=headings, rows=rows)


def hashes_table(arms: list[ArmSummary]) -> DataTable:
    """SHA-256 of the files that the results were read from."""
    rows = [
        [text_cell(f"{run.path}/{name}"), text_cell(digest)]
        for summary in arms
        for run in summary.runs
        for name, digest in sorted(run.sha256.items())
    ]
    return DataTable(headings=["file", "SHA-256"], rows=rows, sortable=False)


def provenance_table(provenance: Mapping[str, Any]) -> DataTable:
    """Versions, machine, commit and hashes."""
    facts = _flatten(provenance, "") if provenance else []
    rows = [[text_cell(key), text_cell(value)] for key, value in facts]
    return DataTable(headings=["what", "value"], rows=rows, sortable=False)


def _flatten(facts: Any, prefix: str) -> list[tuple[str, str]]:
    """Flatten nested facts into (label, text) pairs, with labels such as ``versions torch``.

    Dicts in a list are numbered.
    """
    if isinstance(facts, list) and any(isinstance(fact, dict) for fact in facts):
        facts = {f"({number})": fact for number, fact in enumerate(facts, 1)}
    if isinstance(facts, Mapping) and facts:
        return [pair for key, value in facts.items() for pair in _flatten(value, f"{prefix} {key}".lstrip())]
    if isinstance(facts, list | tuple):
        facts = ", ".join(map(str, facts))
    return [(prefix, numbers.or_missing(facts, str))]
