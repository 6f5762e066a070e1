"""The numbers of a report as CSV, with all digits; fields without a value are empty."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from tinyllm.studies.compare.results import Run, Study
from tinyllm.studies.report.summary import ArmSummary, reference_of, seed_differences, summaries
from tinyllm.utils.tables import csv_text


def csv_files(study: Study) -> dict[str, str]:
    """Texts of the CSV files by name. ``tuning.csv`` exists only if arms were tuned."""
    arms = summaries(study)
    reference = reference_of(arms)
    runs = [(run, seed_differences(summary, reference).get(run.seed)) for summary in arms for run in summary.runs]
    files = {
        "arms.csv": _csv(arm_rows(study)),
        "runs.csv": _csv(_run_row(run, difference) for run, difference in runs),
        "differences.csv": _csv(difference_rows(study)),
        "curves.csv": _csv({"arm": run.arm, "seed": run.seed} | record for run, _ in runs for record in run.records),
    }
    trials = [{"arm": arm.name, "trial": n} | trial for arm in study.arms for n, trial in enumerate(arm.trials, 1)]
    return files | ({"tuning.csv": _csv(trials)} if trials else {})


def arm_rows(study: Study) -> list[dict[str, Any]]:
    """One row per arm: its result and its cost."""
    return [_arm_row(summary) for summary in summaries(study)]


def difference_rows(study: Study) -> list[dict[str, Any]]:
    """One row per arm other than the reference."""
    return [asdict(row) | {"seeds": " ".join(map(str, row.seeds))} for row in study.differences]


def _arm_row(summary: ArmSummary) -> dict[str, Any]:
    arm, difference = summary.arm, summary.difference
    row: dict[str, Any] = {"arm": arm.name, "settings": " ".join(arm.settings), "seeds_finished": len(summary.finished)}
    row |= {"mean": summary.mean, "sd": summary.sd}
    row |= {"difference": difference.mean if difference and difference.seeds else None}
    for name in ("low", "high", "p", "p_corrected"):
        row[name] = getattr(difference, name) if difference else None
    row |= asdict(arm.account) | {"mismatch": arm.mismatch, "max_steps": arm.max_steps}
    row |= {"tokens": arm.tokens, "flops": arm.flops, "peak_memory_bytes": summary.peak_memory_bytes}
    row |= {"tokens_per_s": summary.tokens_per_s, "decode_tokens_per_s": arm.decode_tokens_per_s}
    row |= {f"solved {key}": value for key, value in arm.solved.items()}
    row |= {f"tuned {key}": value for key, value in arm.tuned.items()}
    return row | {f"probe {task}": value for task, value in arm.probes.items()}


def _run_row(run: Run, difference: float | None) -> dict[str, Any]:
    row = {name: getattr(run, name) for name in ("arm", "seed", "status", "error", "value")}
    row["difference"] = difference
    return row | {
        name: getattr(run, name) for name in ("tokens_per_s", "peak_memory_bytes", "seconds", "path", "command")
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    """CSV with the union of all keys as columns, in order of first appearance."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    return csv_text(names, ([row.get(name) for name in names] for row in listed))
