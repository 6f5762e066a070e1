"""A finished comparison as one more run of wandb, beside the runs of its arms: tables, differences and the page."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyllm.loggers.wandb_client import PROJECT, asked_mode, is_installed, sentences, start
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report.csv_files import arm_rows, difference_rows

TARGET = "tinyllm.loggers.wandb.Wandb"
"""The logger that a comparison is sent for."""
KEPT = "report.html has everything"


def send(study: Study, directory: Path, logger: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
    """Send the report in ``directory`` if the runs were logged with wandb; whatever happens there, this returns.

    The same study in the same directory is the same run, which a second time is written anew. It has the job type
    ``comparison`` and stands in the group of the runs, which without a group of their own is named by the directory.

    Args:
        logger: the configuration of the runs' logger, ``conf/logger/wandb.yaml`` with its keys, or another's.
        say: takes sentences for the person.
    """
    if logger.get("_target_") != TARGET:
        return
    mode = asked_mode(logger["mode"])
    if mode == "disabled":
        return
    if not is_installed():
        say("wandb is not installed, so the comparison is not sent: pip install 'tinyllm[wandb]'")
        return
    try:
        process = start()
    except OSError as error:
        say(f"wandb cannot be started, so the comparison is not sent: {error}")
        return
    process.send(_opening(study, directory.absolute(), logger, mode))
    tables = {"arms": _table(arm_rows(study)), "differences": _table(difference_rows(study))}
    process.send({"tables": tables, "page": str(directory.absolute() / "report.html")})
    process.send({"end": {"status": "finished", "verdicts": study.verdicts}, "samples": []})
    in_time = process.finish(logger["init_timeout"] + logger["finish_timeout"])
    for text in sentences(process, kept=KEPT):
        say(text)
    if not in_time:
        say(f"wandb was not done in time and was stopped; {KEPT}")
    elif process.ended():
        say(f"wandb has died (exit code {process.ended()}); {KEPT}")


def _opening(study: Study, directory: Path, logger: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """The run to open."""
    group = logger["group"] or directory.name
    place = Path(logger["dir"]) if logger["dir"] else directory
    init = {
        "id": hashlib.sha256(f"{group}\n{directory.name}\n{study.command}".encode()).hexdigest()[:8],
        "project": logger["project"] or os.environ.get("WANDB_PROJECT") or PROJECT,
        "entity": logger["entity"],
        "name": directory.name,
        "group": group,
        "job_type": "comparison",
        "tags": list(logger["tags"]) or None,
        "notes": study.question,
        "dir": str(place.absolute()),
    }
    shown = ("command", "metric", "match", "budget", "amount", "effect", "seeds", "reference", "provenance")
    return {
        "mode": mode,
        "init": init,
        "config": {name: getattr(study, name) for name in shown},
        "x_axis": "step",
        "pid": os.getpid(),
        "init_timeout": logger["init_timeout"],
        "finish_timeout": logger["finish_timeout"],
    }


def _table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns and data as a table of wandb takes them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
