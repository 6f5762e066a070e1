"""Reads the facts that a run directory holds, without torch: ``run.json``, the configuration, its provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.config.renames import renamed
from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.errors import UserError
from tinyllm.runs.layout import CONFIG, RUN_JSON, SEAL
from tinyllm.utils.files import read_json
from tinyllm.utils.nested import flatten, is_within
from tinyllm.utils.yaml_files import read_yaml

ORIGINS = ("code", "versions", "threads", "instructions", "machine")
"""Entries of ``run.json`` that can change a run's metrics, besides configuration and data."""
INFO_ORIGINS = ("device", "precision", "world_size")
"""The same in its section ``info``."""
_MAPPINGS = ("choices", "info", "facts", "versions", "result", SEAL)


def read_run_json(run_dir: Path) -> dict[str, Any]:
    """The content of ``run.json``, with the types of the entries that programs use checked.

    Raises:
        UserError: it is missing or damaged.
    """
    file = run_dir / RUN_JSON
    content: dict[str, Any] = read_json(file, what="damaged file" if file.exists() else "not a run directory")
    starts, result = content.get("starts"), content.get("result")
    wrong = [name for name in _MAPPINGS if not isinstance(content.get(name), dict | None)]
    if starts is not None and not (isinstance(starts, list) and all(map(_is_start, starts))):
        wrong.append("starts")
    if isinstance(result, dict) and not all(_is_amount(result.get(name, 0)) for name in ("step", "seconds")):
        wrong.append("result")
    if wrong:
        raise UserError("damaged file", file=file, hint=f"{wrong[0]} has an unexpected value")
    return content


def _is_start(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(settings := value.get("settings", []), list):
        return False
    ranges = {"step": (0, 2**63), "world_size": (1, 2**20), "threads": (1, 2**12)}
    counts = all(type(value.get(name)) is int and low <= value[name] <= high for name, (low, high) in ranges.items())
    return counts and all(isinstance(text, str) for text in settings)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 2**63


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved configuration of a run by dotted key.

    Raises:
        UserError: it is missing or damaged.
    """
    return dict(flatten(renamed(read_yaml(run_dir / CONFIG, of=dict, what="damaged file"))))


def first_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run with the ``init_from`` of its first start, the only one that read it.

    Raises:
        UserError: a file is missing or damaged.
    """
    config, starts = read_config(run_dir), read_run_json(run_dir).get("starts") or [{}]
    return config | {"init_from": starts[0].get("init_from", config.get("init_from"))}


def origins(run_json: Mapping[str, Any]) -> dict[str, Any]:
    """Everything besides its configuration that determined a run, by name: code, versions, data, machine."""
    values = {name: run_json.get(name) for name in ORIGINS}
    values |= {f"data.{name}": digest for name, digest in (run_json.get("facts") or {}).get("data", {}).items()}
    values |= {name: (run_json.get("info") or {}).get(name) for name in INFO_ORIGINS}
    return dict(flatten(values))


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that describe the run, without those that describe a single start of the program."""
    return {key: value for key, value in config.items() if not is_within(key, NOT_COMPARED)}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two mappings differ, as pairs; None stands for a missing entry."""
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}
