"""Finds run directories, and summarizes each without opening a checkpoint or loading torch."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.facts import origins, read_config, read_run_json
from tinyllm.runs.layout import CHECKPOINTS, FAILED, FINISHED, INTERRUPTED, LOCK, METRICS, RUN_JSON, RUNNING
from tinyllm.runs.metrics_log import read_backwards, read_metrics
from tinyllm.runs.seal import check_seal
from tinyllm.utils.locks import is_held
from tinyllm.utils.nested import flatten

DAMAGED, CHANGED = "damaged", "changed"
"""Statuses of runs whose files cannot be read, or were edited after the end."""
EVALUATED = "val/loss"


class ListedRun:
    """A run directory as the ``runs`` command shows it.

    ``values`` holds what ``run.json`` and ``metrics.jsonl`` say: options by group, facts about the model, the last
    value of each metric. The configuration is read when one of its keys is looked up.

    Args:
        path: the directory.
        check: compare the files with their seal.
        lowest: gives the lowest validation loss of a run that has not recorded it; default: read all its metrics.
    """

    def __init__(self, path: Path, *, check: bool = False, lowest: Callable[[], float | None] | None = None) -> None:
        self.path = path
        self.is_lost = False
        """Whether its process ended without recording the end: it was killed, or the machine went down."""
        self._lowest = lowest or self._lowest_recorded
        self.facts: dict[str, Any] = {}
        self.values: dict[str, Any] = {"run": str(path), "status": DAMAGED}
        try:
            self.facts = read_run_json(path)
            self.values |= self._read()
            if check and self.values["status"] in (FINISHED, INTERRUPTED, FAILED):
                check_seal(path)
        except UserError as error:
            self.values["status"] = CHANGED if check and self.values["status"] != DAMAGED else DAMAGED
            self.values["note"] = f"{error.what}: {error.hint}" if error.hint else error.what
        except OSError as error:
            self.values["note"] = str(error)
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # valid JSON that no run has written
            self.values["note"] = f"damaged file: {type(error).__name__}: {error}"

    def get(self, key: str) -> Any:
        """The value of a name or a configuration key; None if there is no value."""
        return self.values[key] if key in self.values else self.config.get(key)

    def everything(self) -> dict[str, Any]:
        """Every value by name, the configuration included."""
        return self.config | self.values

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration by dotted key; empty if it cannot be read."""
        try:
            return read_config(self.path)
        except UserError as error:
            self.values.setdefault("note", error.what)
            return {}

    def _read(self) -> dict[str, Any]:
        facts, log = self.facts, self.path / METRICS
        info, result = _mapping(facts.get("info")), _mapping(facts.get("result"))
        status = str(facts.get("status"))
        if status == RUNNING:
            self.is_lost = not is_held(self.path / LOCK)
            status = INTERRUPTED if self.is_lost else RUNNING
            result = {}  # left over from before the run was resumed
        newest = last_values(log)
        best = result.get("best_val_loss")
        if best is None and EVALUATED in newest:
            best = self._lowest()
        # Hydra records a group without an option as the string "None".
        choices = {name: option for name, option in _mapping(facts.get("choices")).items() if option != "None"}
        written = max(file.stat().st_mtime for file in (self.path / RUN_JSON, log) if file.is_file())
        return {
            **dict(flatten(origins(facts))),
            **{name: value for name, value in info.items() if not isinstance(value, list | dict)},
            **{name: value for name, value in newest.items() if name != "speed/tokens_per_s"},
            **choices,
            "run": str(self.path),
            "status": status,
            "commit": facts.get("commit"),
            "host": facts.get("host"),
            "step": result.get("step", newest.get("step", 0)),
            "tokens/s": newest.get("speed/tokens_per_s"),
            "best_val_loss": best,
            "reason": facts.get("reason") or result.get("reason") or None,
            "age": time.time() - written,
        }

    def _lowest_recorded(self) -> float | None:
        losses = (record.get(EVALUATED) for record in read_metrics(self.path / METRICS))
        return min((loss for loss in losses if loss is not None), default=None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return {} if value is None else dict(value)


def find_runs(folders: Iterable[Path], *, check: bool = False) -> list[ListedRun]:
    """Every run directory in and below the folders, sorted by name within each folder, without duplicates.

    Raises:
        UserError: a folder does not exist.
    """
    runs: dict[Path, ListedRun] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError("no such directory", file=folder)
        for path in run_dirs(folder):
            if path.resolve() not in runs:
                runs[path.resolve()] = ListedRun(path, check=check)
    return list(runs.values())


def run_dirs(root: Path) -> Iterator[Path]:
    """The directories that hold a run or what is left of it. Does not look inside runs or hidden folders."""
    return (folder for folder, is_run in folders_below(root) if is_run)


def folders_below(root: Path) -> Iterator[tuple[Path, bool]]:
    """Every folder, itself included, and whether it holds a run. Does not look inside runs or hidden folders."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        is_run = RUN_JSON in files or METRICS in files
        folders[:] = [] if is_run else [name for name in folders if name != CHECKPOINTS and not name.startswith(".")]
        yield Path(folder), is_run


def last_values(log: Path) -> dict[str, Any]:
    """The newest value of each metric, reading back to the newest evaluation."""
    values: dict[str, Any] = {}
    for record in read_backwards(log):
        values = record | values
        if record.get(EVALUATED) is not None:
            break
    return values


def required_run(run: str | None, *, program: str) -> str:
    """The value of the setting ``run``, where ``latest`` stands for the newest run below ``outputs/``.

    Raises:
        UserError: no value; the hint has a complete command, with the newest run if there is one.
    """
    if run and (run != "latest" or Path(run).exists()):
        return run
    newest = newest_run(Path("outputs"))
    if run and newest is not None:
        return str(newest)
    if newest is None:
        hint = f"python -m tinyllm.{program} run=<directory>; python -m tinyllm.train creates one below outputs/"
    else:
        hint = f"python -m tinyllm.{program} run={newest} uses the newest run here"
    raise UserError("no run given", key="run", value=run, hint=hint)


def check_run(cfg: Any, invocation: Any) -> None:
    """Refuse a command without a run; the first task of programs that read one, before torch is loaded.

    Raises:
        UserError: see :func:`required_run`.
    """
    required_run(cfg.run, program=invocation.program)


def newest_run(outputs: Path) -> Path | None:
    """The run one or two levels below ``outputs`` whose checkpoints changed last."""
    folders = {
        path for depth in ("*", "*/*") for path in outputs.glob(f"{depth}/{CHECKPOINTS}") if any(path.glob("step-*"))
    }
    return max(folders, key=lambda path: (path.stat().st_mtime, path)).parent if folders else None
