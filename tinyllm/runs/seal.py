"""The seal of a run that ended: sha256 of what it wrote, so that a later reader notices a file changed by hand.

It guards against mistakes. Whoever changes ``run.json`` too can forge it.
"""

from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.layout import CONFIG, METRICS, OVERRIDES, RUN_JSON, TOKENIZER
from tinyllm.utils.files import read_json, sha256

SEALED = (CONFIG, OVERRIDES, TOKENIZER, METRICS)
"""The files that a later reader computes with."""
SEAL = "sha256"
"""Under this name ``run.json`` holds the seal."""


def sealed(run_dir: Path) -> dict[str, str]:
    """sha256 of the files of a run directory that are there, by name."""
    return {name: sha256(run_dir / name) for name in SEALED if (run_dir / name).is_file()}


def check_seal(run_dir: Path) -> None:
    """Refuse a run directory that is not as its run left it.

    Raises:
        UserError: a file was changed, is missing or was added; or there is no seal to tell.
    """
    seal = read_run_json(run_dir).get(SEAL)
    if not isinstance(seal, dict) or not seal:
        hint = "the run has not ended by itself, or was made before there were seals"
        raise UserError("nothing tells whether the files are as the run left them", file=run_dir, hint=hint)
    found = sealed(run_dir)
    for name in SEALED:
        if seal.get(name) != found.get(name):
            what = "is missing" if name not in found else "was added" if name not in seal else "was changed"
            hint = "bring the old file back, or take the directory away and train again"
            raise UserError(f"a file of the run {what} after its end", file=run_dir / name, hint=hint)


def read_run_json(run_dir: Path) -> dict[str, Any]:
    """What ``run.json`` says, every entry that programs compute with of its kind.

    Raises:
        UserError: it is missing or damaged.
    """
    file = run_dir / RUN_JSON
    content: dict[str, Any] = read_json(file, what="a damaged file" if file.exists() else "not a run directory")
    starts, result = content.get("starts"), content.get("result")
    wrong = [name for name in _MAPPINGS if not isinstance(content.get(name), dict | None)]
    if starts is not None and not (isinstance(starts, list) and all(map(_is_start, starts))):
        wrong.append("starts")
    if isinstance(result, dict) and not all(_is_amount(result.get(name, 0)) for name in ("step", "seconds")):
        wrong.append("result")
    if wrong:
        raise UserError("a damaged file", file=file, hint=f"{wrong[0]} is not what a run writes there")
    return content


_MAPPINGS = ("choices", "info", "facts", "versions", "result", SEAL)


def _is_start(one: Any) -> bool:
    """What a process that trained has left of itself."""
    if not isinstance(one, dict) or not isinstance(settings := one.get("settings", []), list):
        return False
    ranges = {"step": (0, 2**63), "world_size": (1, 2**20), "threads": (1, 2**12)}
    counts = all(type(one.get(name)) is int and low <= one[name] <= high for name, (low, high) in ranges.items())
    return counts and all(isinstance(text, str) for text in settings)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 2**63
