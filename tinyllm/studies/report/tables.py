"""The tables of a report."""

from collections.abc import Callable
from typing import Any

from tinyllm.programs.cost import Account
from tinyllm.studies.compare.results import Study
from tinyllm.studies.compare.statistics import LEVEL, POWER
from tinyllm.studies.report import numbers
from tinyllm.studies.report.blocks import Cell, Table
from tinyllm.studies.report.summary import ArmSummary, seed_differences
from tinyllm.studies.report.tuning import at_the_edge

MATCHED: dict[str, tuple[str, Callable[[Account], int]]] = {
    "params": ("parameters", lambda account: account.parameters),
    "active_params": ("active parameters", lambda account: account.active_parameters),
    "flops": ("training FLOPs per token", lambda account: account.flops_per_token),
    "kv_bytes": ("KV bytes per token", lambda account: account.kv_bytes_per_token),
}
"""What can be matched: how one says it, and where it stands."""


def name_cell(one: ArmSummary) -> Cell:
    """An arm's name, with its colour."""
    text = numbers.line(one.arm.name)
    return Cell(text, text, arm=one.style, strong=one.is_reference)


def arms_table(study: Study, arms: list[ArmSummary]) -> Table:
    """What each arm costs and gives."""
    metric = numbers.metric_name(study.metric)
    headings = ["arm", f"{metric} ± sd", "difference, 95\u00a0%", "p, corrected", "seeds"]
    headings += ["parameters", "active", "FLOPs per token", "KV bytes per token"]
    headings += ["peak memory", "tokens/s", "decode tokens/s"]
    return Table(headings=headings, rows=[_arm_row(one) for one in arms])


def _arm_row(one: ArmSummary) -> list[Cell]:
    account, found = one.arm.account, one.difference
    p = found.p_corrected if found else None
    clear = p is not None and p < LEVEL
    return [
        name_cell(one),
        Cell(numbers.with_sd(one.mean, one.sd), one.mean),
        Cell("reference", 0.0)
        if one.is_reference
        else Cell(numbers.interval(found), found.mean if found and found.seeds else None, strong=clear),
        Cell("" if one.is_reference else numbers.probability(p), p, strong=clear),
        _figure(len(one.finished), str),
        _figure(account.parameters, numbers.whole),
        _figure(account.active_parameters, numbers.whole),
        _figure(account.flops_per_token, numbers.whole),
        _figure(account.kv_bytes_per_token, numbers.whole),
        _figure(one.peak_memory_bytes, numbers.size),
        _figure(one.tokens_per_s, numbers.rate),
        _figure(one.arm.decode_tokens_per_s, numbers.rate),
    ]


def _figure(number: Any, shown: Callable[[Any], str]) -> Cell:
    return Cell(shown(number), number)


def _words(text: str, *, strong: bool = False) -> Cell:
    text = numbers.line(text) or numbers.MISSING
    return Cell(text, text, strong=strong)


def seeds_table(study: Study, arms: list[ArmSummary]) -> Table:
    """Each seed's figure, and below it the difference to the reference's of the same seed."""
    reference = next((one for one in arms if one.is_reference), None)
    rows = []
    for one in arms:
        differences = seed_differences(one, reference) if reference and not one.is_reference else {}
        cells = []
        for seed in study.seeds:
            text = numbers.value(one.values.get(seed))
            if seed in differences:
                text += f" ({numbers.signed(differences[seed])})"
            cells.append(Cell(text, one.values.get(seed)))
        rows.append([name_cell(one), *cells])
    return Table(
        headings=["arm", *(f"seed {seed}" for seed in study.seeds)],
        rows=rows,
        caption="In parentheses: minus the reference's figure of the same seed.",
    )


def differences_table(study: Study, arms: list[ArmSummary]) -> Table:
    """All that the statistics give of each difference."""
    headings = ["arm", "pairs", "mean", "sd", "95 % interval", "p", "p, corrected", "can be seen", "seeds needed"]
    rows = []
    for one in arms:
        if (found := one.difference) is None or one.is_reference:
            continue
        bounds = found.low is not None and found.high is not None
        rows.append(
            [
                name_cell(one),
                _figure(len(found.seeds), str),
                Cell(numbers.signed(found.mean), found.mean) if found.seeds else Cell(numbers.MISSING),
                _figure(found.sd, numbers.value),
                Cell(f"{numbers.signed(found.low)} to {numbers.signed(found.high)}" if bounds else "–", found.low),
                _figure(found.p, numbers.probability),
                _figure(found.p_corrected, numbers.probability),
                _figure(found.detectable, numbers.value),
                _figure(found.seeds_needed, numbers.whole),
            ]
        )
    return Table(
        headings=headings,
        rows=rows,
        caption=f"“Can be seen” is the difference that so many pairs show with a probability of {100 * POWER:g} %;"
        f" “seeds needed” is how many it takes to see one of {study.effect:g} with that probability. Both take the sd"
        " as known, which few seeds only estimate.",
    )


def matching_table(study: Study, arms: list[ArmSummary]) -> Table:
    """What makes each arm, what the matching chose, and how near it came."""
    matched = MATCHED.get(study.match)
    headings = ["arm", "settings", "solved", *([matched[0], "mismatch"] if matched else [])]
    headings += ["steps", "tokens per run", "FLOPs per run"]
    timed = study.budget == "minutes"
    headings += ["minutes trained"] if timed else []
    rows = []
    for one in arms:
        arm = one.arm
        solved = ", ".join(f"{key}={value}" for key, value in arm.solved.items())
        row = [name_cell(one), _words(" ".join(arm.settings)), _words(solved)]
        if matched:
            row += [_figure(matched[1](arm.account), numbers.whole), _figure(arm.mismatch, numbers.percent)]
        row += [_figure(arm.max_steps, numbers.whole), _figure(arm.tokens, numbers.whole)]
        row.append(_figure(arm.flops, numbers.brief))
        rows.append([*row, *([_figure(one.minutes, numbers.rate)] if timed else [])])
    return Table(headings=headings, rows=rows)


def tuning_table(study: Study, arms: list[ArmSummary]) -> Table:
    """How many trials each arm had, and what they chose."""
    best = f"best {numbers.metric_name(study.trial_metric)}"
    rows = []
    for one in arms:
        if not one.arm.tuned and not one.arm.trials:
            continue
        edges = at_the_edge(one.arm)
        lost = sum(trial.get("value") is None for trial in one.arm.trials)
        values = [trial["value"] for trial in one.arm.trials if trial.get("value") is not None]
        chosen = ", ".join(f"{key}={numbers.plain_number(value)}" for key, value in one.arm.tuned.items())
        rows.append(
            [
                name_cell(one),
                Cell(f"{len(one.arm.trials)}" + (f" ({lost} failed)" if lost else ""), len(one.arm.trials)),
                _words(chosen),
                _figure(min(values, default=None), numbers.value),
                _words(f"yes: {', '.join(edges)}" if edges else "no", strong=bool(edges)),
            ]
        )
    return Table(headings=["arm", "trials", "chosen", best, "at an edge of what was tried"], rows=rows)


def probes_table(arms: list[ArmSummary]) -> Table:
    """The accuracy on each synthetic task."""
    tasks = list(dict.fromkeys(task for one in arms for task in one.arm.probes))

    def accuracy(number: float | None) -> str:
        return numbers.MISSING if number is None else f"{100 * number:.1f} %"

    rows = [[name_cell(one), *(_figure(one.arm.probes.get(task), accuracy) for task in tasks)] for one in arms]
    return Table(headings=["arm", *map(numbers.line, tasks)], rows=rows)


def runs_table(study: Study, arms: list[ArmSummary]) -> Table:
    """Every run."""
    metric = numbers.metric_name(study.metric)
    headings = ["arm", "seed", "status", metric, "tokens/s", "peak memory", "duration", "directory"]
    rows = [
        [
            name_cell(one),
            _figure(run.seed, str),
            _words(run.status, strong=run.status != "finished"),
            _figure(run.value, numbers.value),
            _figure(run.tokens_per_s, numbers.rate),
            _figure(run.peak_memory_bytes, numbers.size),
            _figure(run.seconds, numbers.clock),
            _words(run.path),
        ]
        for one in arms
        for run in one.runs
    ]
    return Table(headings=headings, rows=rows)


def hashes_table(arms: list[ArmSummary]) -> Table:
    """What the files held that the figures come from."""
    rows = [
        [_words(f"{run.path}/{name}"), _words(digest)]
        for one in arms
        for run in one.runs
        for name, digest in sorted(run.sha256.items())
    ]
    return Table(headings=["file", "SHA-256"], rows=rows, sortable=False)


def provenance_table(study: Study) -> Table:
    """Versions, machine, commit and hashes."""
    return Table(
        headings=["what", "value"],
        rows=[[_words(key), _words(value)] for key, value in _flat(study.provenance, "")],
        sortable=False,
    )


def _flat(facts: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(facts, dict) and facts:
        return [pair for key, value in facts.items() for pair in _flat(value, f"{prefix}{' ' if prefix else ''}{key}")]
    if isinstance(facts, list) and any(isinstance(one, dict) for one in facts):
        facts = {f"({number})": one for number, one in enumerate(facts, 1)}
        return _flat(facts, prefix)
    if isinstance(facts, list | tuple):
        facts = ", ".join(map(str, facts))
    return [(numbers.line(prefix), numbers.MISSING if facts is None else numbers.line(str(facts)))]
