"""The figures of a report as CSV, unrounded; a field is empty where there is no figure."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report.summary import ArmSummary, seed_differences, summaries
from tinyllm.utils.tables import csv_text


def csv_files(study: Study) -> dict[str, str]:
    """The files' texts by name; ``tuning.csv`` only where there was tuning."""
    arms = summaries(study)
    files = {
        "arms.csv": _csv(arm_rows(study)),
        "runs.csv": _csv(_run(run, one, arms) for one in arms for run in one.runs),
        "differences.csv": _csv(difference_rows(study)),
        "curves.csv": _csv(
            {"arm": run.arm, "seed": run.seed} | record for one in arms for run in one.runs for record in run.records
        ),
    }
    trials = [{"arm": arm.name, "trial": n} | trial for arm in study.arms for n, trial in enumerate(arm.trials, 1)]
    return files | ({"tuning.csv": _csv(trials)} if trials else {})


def arm_rows(study: Study) -> list[dict[str, Any]]:
    """A row for each arm: what it costs and gives, unrounded."""
    return [_arm(one) for one in summaries(study)]


def difference_rows(study: Study) -> list[dict[str, Any]]:
    """A row for each arm but the reference."""
    return [asdict(one) | {"seeds": " ".join(map(str, one.seeds))} for one in study.differences]


def _arm(one: ArmSummary) -> dict[str, Any]:
    arm, found = one.arm, one.difference
    row: dict[str, Any] = {"arm": arm.name, "settings": " ".join(arm.settings), "seeds_finished": len(one.finished)}
    row |= {"mean": one.mean, "sd": one.sd}
    row |= {"difference": found.mean if found and found.seeds else None}
    for name in ("low", "high", "p", "p_corrected"):
        row[name] = getattr(found, name) if found else None
    row |= asdict(arm.account) | {"mismatch": arm.mismatch, "max_steps": arm.max_steps}
    row |= {"tokens": arm.tokens, "flops": arm.flops, "peak_memory_bytes": one.peak_memory_bytes}
    row |= {"tokens_per_s": one.tokens_per_s, "decode_tokens_per_s": arm.decode_tokens_per_s}
    row |= {f"solved {key}": value for key, value in arm.solved.items()}
    row |= {f"tuned {key}": value for key, value in arm.tuned.items()}
    return row | {f"probe {task}": value for task, value in arm.probes.items()}


def _run(run: Any, one: ArmSummary, arms: list[ArmSummary]) -> dict[str, Any]:
    reference = next((other for other in arms if other.is_reference), None)
    paired = seed_differences(one, reference) if reference and not one.is_reference else {}
    row = {name: getattr(run, name) for name in ("arm", "seed", "status", "error", "value")}
    row["difference"] = paired.get(run.seed)
    return row | {
        name: getattr(run, name) for name in ("tokens_per_s", "peak_memory_bytes", "seconds", "path", "command")
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    """Rows under the union of their names, in the order in which these first come."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    return csv_text(names, ([row.get(name) for name in names] for row in listed))
