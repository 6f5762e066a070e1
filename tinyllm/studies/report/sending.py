"""Logs a finished comparison as a wandb run of its own, next to the runs of its arms."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.loggers.wandb_client import PROJECT, finish, resolve_mode, start
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report.csv_files import arm_rows, difference_rows

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
    directory = directory.absolute()
    wandb_dir = Path(logger["dir"]).absolute() if logger["dir"] else directory
    process = start(wandb_dir, report=say, without="the comparison is not sent")
    if process is None:
        return
    process.send(_run_to_open(study, directory, logger, mode, wandb_dir))
    tables = {"arms": _table(arm_rows(study)), "differences": _table(difference_rows(study))}
    process.send({"tables": tables, "page": str(directory / "report.html")})
    process.send({"end": {"status": "finished", "verdicts": study.verdicts}, "samples": []})
    for text in finish(process, logger["init_timeout"] + logger["finish_timeout"], backup=BACKUP):
        say(text)


def _run_to_open(
    study: Study, directory: Path, logger: Mapping[str, Any], mode: str, wandb_dir: Path
) -> dict[str, Any]:
    """First message to the wandb process. The run's id is a hash, so that sending again finds the same run."""
    group = logger["group"] or directory.name
    init = {
        "id": hashlib.sha256(f"{group}\n{directory.name}\n{study.command}".encode()).hexdigest()[:8],
        "project": logger["project"] or os.environ.get("WANDB_PROJECT") or PROJECT,
        "entity": logger["entity"],
        "name": directory.name,
        "group": group,
        "job_type": "comparison",
        "tags": list(logger["tags"]) or None,
        "notes": study.question,
        "dir": str(wandb_dir),
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
