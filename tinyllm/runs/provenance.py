"""What produced a run: versions, machine, commit, and a fingerprint of the training code."""

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
SOURCES = (".py", ".cpp", ".h")
"""Suffixes of source files."""
TRAINING_CODE = (
    *("nn", "models", "optim", "tokenizers", "data", "inference", "training", "interop", "runs", "utils"),
    *(f"programs/{name}.py" for name in ("builders", "resume", "run_plan", "saved_model", "saved_weights")),
    *(f"programs/{name}.py" for name in ("trainer_builder", "train", "remaining_batches", "evaluator")),
    *(f"programs/{name}.py" for name in ("background_preparation", "reference", "rollouts", "prompt_checks")),
    *(f"programs/{name}.py" for name in ("reference_model", "reward_model", "decoding_kernels")),
    "config/build.py",
)
"""Folders and files of the package that determine what training computes from a resolved configuration and its data.

All other files compose that configuration, whose resolved form the run directory holds, or display results.
"""


def provenance() -> dict[str, Any]:
    """Versions, machine and code of this process, as stored in ``run.json``."""
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
    """sha256 over the names and contents of the training code."""
    return package_fingerprint(PACKAGE)


def package_fingerprint(package: Path) -> str:
    """:func:`code_fingerprint` of a copy of the package. Hashes name, length and bytes of each file, sorted by name."""
    # Hash each file's length as well, so that different sets of files never produce the same byte stream.
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in training_files(package)):
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def training_files(package: Path) -> Iterator[Path]:
    """The source files of the training code.

    Raises:
        FileNotFoundError: an entry of ``TRAINING_CODE`` does not exist; a fingerprint without it would miss changes.
    """
    for name in TRAINING_CODE:
        path = package / name
        if not path.exists():
            raise FileNotFoundError(path)
        yield from [path] if path.is_file() else (file for file in path.rglob("*") if file.suffix in SOURCES)


def _commit() -> str | None:
    """The git commit of the checkout that contains the package, with ``+`` if tracked files differ from it."""
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
