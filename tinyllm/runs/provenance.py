"""What produced a run: versions, machine, commit and fingerprint of the code."""

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

import tinyllm

PACKAGE = Path(tinyllm.__file__).resolve().parent
TRAINING_CODE = (
    *("nn", "models", "optim", "tokenizers", "data", "inference", "training", "runs", "utils"),
    *(f"programs/{name}.py" for name in ("builders", "resume", "run_plan", "trainer_builder", "train")),
    "config/build.py",
)
"""Folders and files of the package that decide what training computes from a resolved configuration and its data.

The other modules compose that configuration, which a run directory holds as it came out, or show what happened.
"""


def provenance() -> dict[str, Any]:
    """What produces a run here and now."""
    return {
        "versions": {"tinyllm": tinyllm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "code": code_fingerprint(),
    }


@cache
def code_fingerprint() -> str:
    """sha256 over names and contents of the source files that decide what training computes."""
    return fingerprint_of(PACKAGE)


def fingerprint_of(package: Path) -> str:
    """The same of another copy of the package: of each file its name, its length and its bytes, in sorted order."""
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in training_files(package)):
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def training_files(package: Path) -> Iterator[Path]:
    """The source files that decide what training computes.

    Raises:
        FileNotFoundError: a name of the list is not there; a fingerprint without it would miss changes.
    """
    for name in TRAINING_CODE:
        place = package / name
        if not place.exists():
            raise FileNotFoundError(place)
        yield from [place] if place.is_file() else place.rglob("*.py")


def _commit() -> str | None:
    """The commit of the checkout that tinyllm lies in, with ``+`` when files differ from it."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
