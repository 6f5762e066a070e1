"""The run directories of a study: the name of each run's directory, and the results in it."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import METRICS, RUN_JSON
from tinyllm.runs.metrics_log import Speed, read_metrics
from tinyllm.runs.provenance import code_fingerprint
from tinyllm.runs.seal import check_seal, sealed
from tinyllm.studies.compare.results import Run
from tinyllm.studies.compare.run_pool import PooledRun

FINISHED, FAILED, MISSING = "finished", "failed", "missing"
LONGEST_NAME = 60


def run_name(arm: str, seed: int, config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The name of a run's directory: arm, seed, and a digest of everything that the results depend on.

    Args:
        config: the resolved configuration as plain containers.
        data: fingerprints of the tokens and the tokenizer.
    """
    # Code and torch are part of it: both can change every digit of a result.
    relevant = {name: node for name, node in config.items() if name not in NOT_COMPARED}
    inputs = {"config": relevant, "data": dict(data), "code": code_fingerprint(), "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    return f"{slug(arm)}_s{seed}_{digest[:10]}"


def slug(text: str) -> str:
    """A string as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:LONGEST_NAME] or "arm"


def default_study_dir(kind: str, name: str, settings: Iterable[str]) -> Path:
    """The default directory of a study: the same for the same settings, in any order."""
    digest = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:8]
    return Path("outputs") / kind / f"{name}_{digest}"


def is_finished(path: Path) -> bool:
    """Whether the run in this directory has finished.

    Raises:
        UserError: a file has changed since.
    """
    if not (path / RUN_JSON).is_file() or read_run_json(path).get("status") != FINISHED:
        return False
    check_seal(path)
    return True


def result_of(run: PooledRun, *, arm: str, seed: int, metric: str, study: Path, code: int | None) -> Run:
    """The result of a run.

    Args:
        study: the study's directory.
        code: the exit code if the run was started and did not finish.
    """
    identity: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "path": str(run.path.relative_to(study)),
        "command": shlex.join(["python", "-m", "tinyllm.train", *run.command]),
    }
    if not is_finished(run.path):
        if code is None:
            return Run(**identity, status=MISSING)
        return Run(**identity, status=FAILED, error=run.reason(code))
    records = read_metrics(run.path / METRICS)
    evaluated = [record for record in records if metric in record]
    # An earlier evaluation would flatter a run that has diverged.
    if not evaluated or not is_finite_number(evaluated[-1][metric]):
        return Run(**identity, status=FAILED, error=f"its last {metric} is not a finite number")
    peaks = [int(record["memory/peak_bytes"]) for record in records if record.get("memory/peak_bytes")]
    return Run(
        **identity,
        status=FINISHED,
        value=evaluated[-1][metric],
        records=[record for record in evaluated if is_finite_number(record[metric])],
        tokens_per_s=speed_of(run.path),
        peak_memory_bytes=max(peaks, default=None),
        seconds=seconds_of(run.path),
        sha256=sealed(run.path),
    )


def is_finite_number(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def speed_of(path: Path) -> float | None:
    """Training speed in tokens per second, without evaluation and saving; None if no speed was recorded."""
    speed = Speed()
    for record in read_metrics(path / METRICS):
        speed.add(record)
    return speed.mean


def seconds_of(path: Path) -> float:
    """Duration of a finished run, evaluation and saving included."""
    return float(read_run_json(path)["result"]["seconds"])


def last_value(path: Path, metric: str) -> float | None:
    """The metric at the last evaluation; None if it is not finite."""
    evaluated = [record[metric] for record in read_metrics(path / METRICS) if metric in record]
    return evaluated[-1] if evaluated and is_finite_number(evaluated[-1]) else None
