"""Building the C++ kernels of this package, and loading what was built."""

import ctypes
import hashlib
import os
import platform
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

from tinyllm.utils.files import set_mode

COMPILE = ("g++", "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-c")
BUILD_SECONDS = 300
"""A compiler that has not finished after this long is stopped. On a busy machine a minute was not always enough, and
rollouts without the kernels have other bits than those of the run that is resumed."""


class KernelsUnavailable(Exception):
    """The kernels cannot be built or loaded here; the message says why."""


def built_library(folder: Path, sources: tuple[Path, ...], command: tuple[str, ...]) -> ctypes.CDLL:
    """The library, built at the first call on a machine and loaded from ``folder`` at later ones.

    Args:
        sources: the file to compile, and those that it includes.
        command: compiles the first of them; ``COMPILE``.

    Raises:
        KernelsUnavailable: no compiler, or it failed.
        FileNotFoundError: a source is missing.
    """
    try:
        file = folder / f"{sources[0].stem}-{_fingerprint(sources, command)}.so"
        if not file.is_file():
            _build(file, (*command, str(sources[0])))
        _check_owner(file)
        return ctypes.CDLL(str(file))
    except FileNotFoundError as error:
        raise KernelsUnavailable(f"{error.filename} was not found") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().partition("\n")[0]
        raise KernelsUnavailable(f"{command[0]} failed: {reason or f'exit code {error.returncode}'}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(str(error)) from error


def _fingerprint(sources: tuple[Path, ...], command: tuple[str, ...]) -> str:
    """Of everything that a build depends on: a home directory may be shared by machines with other processors."""
    cpu = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    parts = [*(source.read_bytes() for source in sources), " ".join(command).encode()]
    parts += [platform.machine().encode(), repr(cpu).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(file: Path, command: tuple[str, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # renamed when whole: several may build at once
        compiled, linked = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        _run([*command, "-o", str(compiled)])
        # Without -fopenmp: the threads are then those of the OpenMP library that torch has loaded already. A second
        # one would start threads of its own, which compete with torch's for the processor.
        _run([command[0], "-shared", str(compiled), "-o", str(linked)])
        set_mode(linked, 0o755)
        linked.replace(file)


def _check_owner(file: Path) -> None:
    """Refuse code that somebody else can have put there: a cache may be shared.

    Raises:
        KernelsUnavailable: the file is not this user's own (or root's), or others may write to it or to its folder.
    """
    if not hasattr(os, "geteuid"):
        return
    # A group may share the folder: what its members put there is theirs.
    for path, writers in ((file, stat.S_IWGRP | stat.S_IWOTH), (file.parent, stat.S_IWOTH)):
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode) or facts.st_uid not in (0, os.geteuid()) or facts.st_mode & writers:
            raise KernelsUnavailable(f"others can write to {path}, so the code in it is not run")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
