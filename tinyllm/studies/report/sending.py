"""Logs a finished comparison as a wandb run of its own, next to the runs of its arms."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.loggers.wandb_client import PROJECT, messages, resolve_mode, start
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report.csv_files import arm_rows, difference_rows
from tinyllm.utils.optional import is_installed

TARGET = "tinyllm.loggers.wandb.Wandb"
"""``_target_`` of the logger for which a comparison is sent."""
BACKUP = "report.html has everything"


def send(study: Study, directory: Path, logger: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
    """Send the report in ``directory`` to wandb if the runs were logged there. Failures are reported, never raised.

    Sending the same study from the same directory again overwrites its wandb run. The run has the job type
    ``comparison`` and belongs to the group of the arms' runs; without one, the group is named after the directory.

    Args:
        logger: configuration of the runs' logger: that of ``conf/logger/wandb.yaml``, or of any other logger.
        say: receives messages for the user.
    """
    if logger.get("_target_") != TARGET:
        return
    mode = resolve_mode(logger["mode"])
    if mode == "disabled":
        return
    if not is_installed("wandb"):
        say("wandb is not installed, so the comparison is not sent: pip install 'tinyllm[wandb]'")
        return
    try:
        process = start()
    except OSError as error:
        say(f"wandb cannot be started, so the comparison is not sent: {error}")
        return
    process.send(_run_to_open(study, directory.absolute(), logger, mode))
    tables = {"arms": _table(arm_rows(study)), "differences": _table(difference_rows(study))}
    process.send({"tables": tables, "page": str(directory.absolute() / "report.html")})
    process.send({"end": {"status": "finished", "verdicts": study.verdicts}, "samples": []})
    in_time = process.finish(logger["init_timeout"] + logger["finish_timeout"])
    for text in messages(process, backup=BACKUP):
        say(text)
    if not in_time:
        say(f"wandb did not finish in time and was stopped; {BACKUP}")
    elif process.ended():
        say(f"wandb died (exit code {process.ended()}); {BACKUP}")


def _run_to_open(study: Study, directory: Path, logger: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """First message to the wandb process. The run's id is a hash, so that sending again finds the same run."""
    group = logger["group"] or directory.name
    wandb_dir = Path(logger["dir"]) if logger["dir"] else directory
    init = {
        "id": hashlib.sha256(f"{group}\n{directory.name}\n{study.command}".encode()).hexdigest()[:8],
        "project": logger["project"] or os.environ.get("WANDB_PROJECT") or PROJECT,
        "entity": logger["entity"],
        "name": directory.name,
        "group": group,
        "job_type": "comparison",
        "tags": list(logger["tags"]) or None,
        "notes": study.question,
        "dir": str(wandb_dir.absolute()),
    }
    fields = ("command", "metric", "match", "budget", "amount", "effect", "seeds", "reference", "provenance")
    return {
        "mode": mode,
        "init": init,
        "config": {name: getattr(study, name) for name in fields},
        "x_axis": "step",
        "pid": os.getpid(),
        "init_timeout": logger["init_timeout"],
        "finish_timeout": logger["finish_timeout"],
    }


def _table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as the ``columns`` and ``data`` of a wandb table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
