"""The directory of a run: created exclusively, and locked while a process trains in it."""

import datetime
import os
import re
import secrets
import socket
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import CHECKPOINTS, LOCK, METRICS, RUN_JSON, RUNNING, SEAL
from tinyllm.runs.seal import sealed
from tinyllm.utils.environment import is_follower
from tinyllm.utils.files import check_utf8, write_json, write_text
from tinyllm.utils.locks import is_held, try_lock, write_holder

LONGEST_NAME = 255
"""Bytes in a file name, the limit of all common file systems."""


def auto_path(name: str) -> Path:
    """``outputs/<date>/<time>_<name>_<id>``; the random id separates runs started in the same second."""
    now = datetime.datetime.now()
    safe = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
    return Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{safe}_{secrets.token_hex(2)}"


def check_new(path: Path) -> None:
    """Check that a run directory does not exist and can be created. Leaves nothing behind.

    Raises:
        UserError: it exists, part of its path is a file, or the parent directory is not writable.
    """
    check_utf8(path, key="run.dir")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        hint = f"each part of a path has at most {LONGEST_NAME} bytes"
        raise UserError("directory name too long", key="run.dir", value=f"{str(path)[:40]}…", hint=hint)
    if os.path.exists(path):  # Path.exists raises where a parent directory may not be entered
        hint = f"choose a different one, or continue that run with resume={path}"
        raise UserError("the run directory exists", key="run.dir", value=path, hint=hint)
    parent = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    if not parent.is_dir():
        hint = f"{parent} is not a directory"
        what = "cannot create the run directory: part of its path is a file"
        raise UserError(what, key="run.dir", value=path, hint=hint)
    # Permissions, quotas and read-only mounts can only be discovered by trying.
    probe = parent / f".tinyllm-probe-{os.getpid()}-{secrets.token_hex(2)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        hint = f"{parent}: {error.strerror}; choose a different place"
        raise UserError("the run directory cannot be created", key="run.dir", value=path, hint=hint) from error


def make_output_dir(out: str | Path | None) -> Path:
    """Create the directory ``out``, or a temporary one for None.

    Raises:
        UserError: it exists or cannot be created.
    """
    if out is None:
        return Path(tempfile.mkdtemp(prefix="tinyllm-"))
    try:
        Path(out).mkdir(parents=True)
    except FileExistsError as error:
        raise UserError("the directory exists", key="out", value=out, hint="choose a different one") from error
    except OSError as error:
        raise UserError("the directory cannot be created", key="out", value=out, hint=str(error.strerror)) from error
    return Path(out)


def check_free(path: Path) -> None:
    """Check that no other process has locked a run directory.

    Raises:
        UserError: a different process has locked it.
    """
    if is_held(path / LOCK) and not is_follower():  # on other ranks, rank 0 may hold it already
        raise _in_use(path)


def _lock(path: Path) -> int:
    """Lock a run directory; the lock lasts until the returned descriptor is closed or the process ends."""
    try:
        descriptor = try_lock(path / LOCK)
    except OSError as error:
        hint = f"{error.strerror}; run.dir=… continues in a different directory"
        raise UserError("the run directory cannot be written", key="run.dir", value=path, hint=hint) from error
    if descriptor is None:
        raise _in_use(path)
    return descriptor


def _in_use(path: Path) -> UserError:
    holder = (path / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return UserError(
        "the run directory is in use", key="run.dir", value=path, hint=f"by {holder}; wait for it or stop it"
    )


class RunDir:
    """The directory of a run, as ranks other than 0 use it: writes do nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.metrics = path / METRICS

    def write(self, texts: Mapping[str, str]) -> None:
        """Write files, given as text by name."""

    def write_status(self, status: str, **facts: Any) -> None:
        """Update ``run.json`` with ``status`` and ``facts``; any status but "running" also seals the directory."""

    def write_start(self, start: Mapping[str, Any], **facts: Any) -> None:
        """Append to the starts in ``run.json``, dropping starts from steps that are trained again.

        Args:
            start: ``step``, where training begins, and the settings and machine of this process.
            facts: facts about the run.
        """

    def close(self) -> None:
        """Unlock the directory."""


class LockedRunDir(RunDir):
    """The directory of a run, locked by this process until :meth:`close`. Pickled for other ranks as a ``RunDir``.

    Raises:
        UserError: it exists (``new=True``), is missing (``new=False``), or another process has locked it.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        super().__init__(path)
        if new:
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                hint = "choose a different one"
                raise UserError("the run directory exists", key="run.dir", value=path, hint=hint) from error
            except OSError as error:
                hint = str(error.strerror)
                raise UserError("the run directory cannot be created", key="run.dir", value=path, hint=hint) from error
        self._descriptor = _lock(path)
        _LOCKED.add(self)
        write_holder(self._descriptor, f"pid {os.getpid()} on host {socket.gethostname()}")
        self.checkpoints.mkdir(exist_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return RunDir, (self.path,)

    def write(self, texts: Mapping[str, str]) -> None:
        """Write files, given as text by name."""
        for name, text in texts.items():
            write_text(self.path / name, text)

    def write_status(self, status: str, **facts: Any) -> None:
        """Update ``run.json`` with ``status`` and ``facts``; any status but "running" also seals the directory."""
        content = self._run_json()
        content.pop(SEAL, None)
        seal = {} if status == RUNNING else {SEAL: sealed(self.path)}
        write_json(self.path / RUN_JSON, content | facts | seal | {"status": status})

    def write_start(self, start: Mapping[str, Any], **facts: Any) -> None:
        """Append to the starts in ``run.json``; see :meth:`RunDir.write_start`."""
        before = [old for old in self._run_json().get("starts") or [] if old["step"] < start["step"]]
        self.write_status(RUNNING, **facts, starts=[*before, dict(start)])

    def _run_json(self) -> dict[str, Any]:
        return read_run_json(self.path) if (self.path / RUN_JSON).is_file() else {}

    def close(self) -> None:
        """Unlock the directory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_LOCKED: weakref.WeakSet[LockedRunDir] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """Close inherited locks in a forked process, such as a data worker, so that the lock ends with its parent."""
    for run_dir in list(_LOCKED):
        run_dir.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)
