"""The run directories below some folders, and what can be said of each without opening a checkpoint."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.facts import origins, read_config
from tinyllm.runs.layout import CHECKPOINTS, LOCK, METRICS, RUN_JSON
from tinyllm.runs.metrics_log import read_backwards, read_metrics
from tinyllm.runs.seal import check_seal, read_run_json
from tinyllm.utils.locks import is_held
from tinyllm.utils.nested import flatten

RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
DAMAGED, CHANGED = "damaged", "changed"
ENDED = (FINISHED, INTERRUPTED, FAILED)
EVALUATED = "val/loss"


class Listed:
    """One run directory.

    ``values`` has what ``run.json`` and ``metrics.jsonl`` say: options by group, facts of the model, the last value of
    each metric. The configuration is read when one of its keys is asked for.

    Args:
        path: the directory.
        check: compare its files with their seal.
    """

    def __init__(self, path: Path, *, check: bool = False) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self.values: dict[str, Any] = {"run": str(path), "status": DAMAGED}
        try:
            self.facts = read_run_json(path)
            self.values |= self._read()
            if check and self.values["status"] in ENDED:
                check_seal(path)
        except UserError as error:
            self.values["status"] = CHANGED if check and self.values["status"] != DAMAGED else DAMAGED
            self.values["note"] = f"{error.what}: {error.hint}" if error.hint else error.what
        except OSError as error:
            self.values["note"] = str(error)
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # JSON, but not what a run writes
            self.values["note"] = f"a damaged file: {type(error).__name__}: {error}"

    def get(self, key: str) -> Any:
        """The value under a name, or of a key of the configuration; None: there is none."""
        return self.values[key] if key in self.values else self.config.get(key)

    def everything(self) -> dict[str, Any]:
        """All that there is to ask for."""
        return self.config | self.values

    @cached_property
    def config(self) -> dict[str, Any]:
        """The leaves of the configuration; none where it cannot be read."""
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
            status = RUNNING if is_held(self.path / LOCK) else INTERRUPTED
            result = {}  # of an end before this start
        newest = last_values(log)
        best = result.get("best_val_loss")
        if best is None and EVALUATED in newest:
            best = min((one[EVALUATED] for one in read_metrics(log) if one.get(EVALUATED) is not None), default=None)
        choices = {name: option for name, option in _mapping(facts.get("choices")).items() if option != "None"}
        written = max(file.stat().st_mtime for file in (self.path / RUN_JSON, log) if file.is_file())
        shown = {name: value for name, value in info.items() if not isinstance(value, list | dict)}
        return {
            **dict(flatten(origins(facts))),
            **shown,
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


def _mapping(value: Any) -> Mapping[str, Any]:
    return {} if value is None else dict(value)


def find_runs(places: Iterable[Path], *, check: bool = False) -> list[Listed]:
    """Every run directory in and below the folders, in the order of their names, each once.

    Raises:
        UserError: a folder does not exist.
    """
    found: dict[Path, Listed] = {}
    for place in places:
        if not place.is_dir():
            raise UserError("no such directory", file=place)
        for path in run_dirs(place):
            if path.resolve() not in found:
                found[path.resolve()] = Listed(path, check=check)
    return list(found.values())


def run_dirs(place: Path) -> Iterator[Path]:
    """The directories that hold a run, or what is left of one; what lies inside a run is not looked at."""
    for folder, folders, files in os.walk(place):
        folders.sort()
        if RUN_JSON in files or METRICS in files:
            folders.clear()
            yield Path(folder)
        else:
            folders[:] = [name for name in folders if name != CHECKPOINTS and not name.startswith(".")]


def last_values(log: Path) -> dict[str, Any]:
    """The newest value of each metric, back to the newest evaluation."""
    values: dict[str, Any] = {}
    for record in read_backwards(log):
        values = record | values
        if record.get(EVALUATED) is not None:
            break
    return values


def required_run(run: str | None, *, program: str) -> str:
    """The value of ``run``; ``latest`` is the newest run below ``outputs/``.

    Raises:
        UserError: it was not given; the line says how to give it, with the newest run below ``outputs/`` if
            any.
    """
    if run and (run != "latest" or Path(run).exists()):
        return run
    newest = newest_run(Path("outputs"))
    if run and newest is not None:
        return str(newest)
    if newest is None:
        hint = f"python -m tinyllm.{program} run=<directory>; python -m tinyllm.train makes one, below outputs/"
    else:
        hint = f"python -m tinyllm.{program} run={newest} takes the newest one here"
    raise UserError("which run?", key="run", value=run, hint=hint)


def newest_run(outputs: Path) -> Path | None:
    """The run below ``outputs`` whose checkpoints changed last."""
    found = {
        path for depth in ("*", "*/*") for path in outputs.glob(f"{depth}/checkpoints") if any(path.glob("step-*"))
    }
    return max(found, key=lambda path: (path.stat().st_mtime, path)).parent if found else None
