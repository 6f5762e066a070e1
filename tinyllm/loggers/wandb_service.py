"""What every use of wandb shares: whether and how it is asked for, and what its process says."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tinyllm.errors import one_line
from tinyllm.loggers.background import Background
from tinyllm.utils.text import shown_path

PROJECT = "tinyllm"
"""Where runs go if neither the configuration nor ``WANDB_PROJECT`` says so."""
Mode = Literal["auto", "online", "offline", "disabled"]


def asked_mode(mode: Mode) -> str:
    """The mode, with ``auto`` as ``WANDB_MODE`` has it; still auto: online if there is an API key, else offline."""
    asked = os.environ.get("WANDB_MODE") if mode == "auto" else None
    return {"dryrun": "offline", "run": "online"}.get(asked or "", asked) or mode


def is_installed() -> bool:
    """Whether the package is there; a folder of that name, such as wandb leaves, is no package."""
    spec = importlib.util.find_spec("wandb")
    return spec is not None and spec.origin is not None


def start() -> Background:
    """Start wandb's process.

    Raises:
        OSError: it cannot be started.
    """
    quiet = {"WANDB_ERROR_REPORTING": "false"} | os.environ | {"WANDB_SILENT": "true"}
    return Background(Path(__file__).with_name("wandb_process.py"), environ=quiet)


def sentences(process: Background, *, kept: str) -> Iterator[str]:
    """What the process has said since the last call, for a person.

    Args:
        kept: where what wandb loses is to be found: ``metrics.jsonl has every record``.
    """
    for said in process.heard():
        match said:
            case {"url": str(url)}:
                yield f"wandb: {url}"
            case {"offline": str(directory), "reason": reason}:
                path = shown_path(Path(directory))
                why = f"wandb is offline ({one_line(reason)})" if reason else "wandb is offline"
                yield f"{why}; its files: {path} (wandb leet shows them, wandb sync uploads them)"
            case {"problem": str(text)}:
                yield f"wandb: {one_line(text)}; {kept}"
