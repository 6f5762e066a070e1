"""What a run directory says, read without torch and without running anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.config.start_keys import NOT_COMPARED
from tinyllm.runs.layout import CONFIG
from tinyllm.utils.nested import flatten, is_within
from tinyllm.utils.yaml_files import read_yaml

MADE_BY = ("code", "versions", "threads", "instructions", "machine")
"""Entries of ``run.json`` that a run's numbers may depend on, besides its configuration and its data."""
OF_INFO = ("device", "precision", "world_size")


def read_config(run_dir: Path) -> dict[str, Any]:
    """The leaves of the resolved configuration of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    return dict(flatten(read_yaml(run_dir / CONFIG, of=dict, what="a damaged file")))


def origins(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers come from besides its configuration, by name: code, versions, data, machine.

    Args:
        facts: the content of ``run.json``.
    """
    found = {name: facts.get(name) for name in MADE_BY}
    found |= {f"data.{name}": digest for name, digest in (facts.get("facts") or {}).get("data", {}).items()}
    found |= {name: (facts.get("info") or {}).get(name) for name in OF_INFO}
    return dict(flatten(found))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The names under which two runs hold different values, with both; None where there is none."""
    names = dict.fromkeys([*one, *other])
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that describe the run, without those that belong to one start of the program."""
    return {key: value for key, value in config.items() if not is_within(key, NOT_COMPARED)}
