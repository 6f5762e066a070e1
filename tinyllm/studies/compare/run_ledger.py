"""Which run directory belongs to which arm and seed, and what it holds."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import Speed, read_metrics
from tinyllm.runs.provenance import code_fingerprint
from tinyllm.runs.seal import check_seal, sealed
from tinyllm.studies.compare.results import Run
from tinyllm.studies.compare.run_pool import Job, has_begun, reason

FINISHED, FAILED, MISSING = "finished", "failed", "missing"
LONGEST_NAME = 60


def run_name(arm: str, seed: int, config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The name of a run's directory: it tells arm and seed, and differs when anything differs that the run depends on.

    Args:
        config: the resolved configuration as plain containers.
        data: fingerprints of the tokens and of the tokenizer.
    """
    kept = {name: node for name, node in config.items() if name not in NOT_COMPARED}
    whole = {"config": kept, "data": dict(data), "code": code_fingerprint(), "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
    return f"{slug(arm)}_s{seed}_{digest[:10]}"


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:LONGEST_NAME] or "arm"


def is_finished(path: Path) -> bool:
    """Whether a run has come to its end, and its files are as it left them.

    Raises:
        UserError: a file was changed since.
    """
    if not has_begun(path) or read_run_json(path).get("status") != FINISHED:
        return False
    check_seal(path)
    return True


def result_of(
    job: Job, *, arm: str, seed: int, metric: str, beside: Path, codes: Mapping[Path, int], command: Sequence[str]
) -> Run:
    """What a run has left.

    Args:
        beside: the study's directory.
        codes: exit codes of the runs that ended without finishing, by run directory.
        command: what a person types for it.
    """
    path = job.path
    common: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "path": str(path.relative_to(beside)),
        "command": shlex.join(command),
    }
    if not is_finished(path):
        failed = path in codes
        return Run(**common, status=FAILED if failed else MISSING, error=reason(job, codes[path]) if failed else "")
    records = read_metrics(path / METRICS)
    evaluated = [record for record in records if metric in record]
    if not evaluated or not is_figure(evaluated[-1][metric]):  # an earlier one would flatter it
        return Run(**common, status=FAILED, error=f"its last {metric} is no finite number")
    peaks = [int(record["memory/peak_bytes"]) for record in records if record.get("memory/peak_bytes")]
    return Run(
        **common,
        status=FINISHED,
        value=evaluated[-1][metric],
        records=[record for record in evaluated if is_figure(record[metric])],
        tokens_per_s=speed_of(path),
        peak_memory_bytes=max(peaks, default=None),
        seconds=seconds_of(path),
        sha256=sealed(path),
    )


def is_figure(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def speed_of(path: Path) -> float | None:
    """Tokens per second of training alone; None where nothing was recorded."""
    speed = Speed()
    for record in read_metrics(path / METRICS):
        speed.add(record)
    return speed.mean


def seconds_of(path: Path) -> float:
    """Seconds that a run took, evaluation and saving included."""
    return float(read_run_json(path)["result"]["seconds"])


def last_value(path: Path, metric: str) -> tuple[float | None, float]:
    """The metric of the last evaluation, None if that gave no number, and the seconds that the run took."""
    evaluated = [record[metric] for record in read_metrics(path / METRICS) if metric in record]
    return (evaluated[-1] if evaluated and is_figure(evaluated[-1]) else None), seconds_of(path)
