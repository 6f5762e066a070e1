"""The directory of a run: created exclusively, locked while the run lives, never shared."""

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
"""Bytes of a file's name, on all common file systems."""


def auto_path(name: str) -> Path:
    """``outputs/<date>/<time>_<name>_<id>``; the id keeps runs of the same second apart."""
    now = datetime.datetime.now()
    safe = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
    return Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{safe}_{secrets.token_hex(2)}"


def check_new(path: Path) -> None:
    """Refuse a run directory that exists or cannot be made, without creating anything.

    Raises:
        UserError: it exists, something is in the way, or its place cannot be written.
    """
    check_utf8(path, key="run.dir")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        hint = f"a part of a path has at most {LONGEST_NAME} bytes"
        raise UserError("too long for the name of a directory", key="run.dir", value=f"{str(path)[:40]}…", hint=hint)
    if os.path.exists(path):  # unlike Path's, it says no where a folder may not be entered
        raise UserError(
            "the run directory exists",
            key="run.dir",
            value=path,
            hint=f"choose another, or continue that run with resume={path}",
        )
    parent = next(one for one in path.absolute().parents if os.path.exists(one))
    if not parent.is_dir():
        raise UserError(
            "a file is in the way of the run directory", key="run.dir", value=path, hint=f"{parent} is not a directory"
        )
    probe = parent / f".tinyllm-probe-{os.getpid()}-{secrets.token_hex(2)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            "the run directory cannot be made",
            key="run.dir",
            value=path,
            hint=f"{parent}: {error.strerror}; choose another place",
        ) from error


def make_output_dir(out: str | Path | None) -> Path:
    """Make the directory that ``out`` names, or a temporary one for None.

    Raises:
        UserError: it exists or cannot be made.
    """
    if out is None:
        return Path(tempfile.mkdtemp(prefix="tinyllm-"))
    try:
        Path(out).mkdir(parents=True)
    except FileExistsError as error:
        raise UserError("the directory exists", key="out", value=out, hint="choose another") from error
    except OSError as error:
        raise UserError("the directory cannot be made", key="out", value=out, hint=str(error.strerror)) from error
    return Path(out)


def check_free(path: Path) -> None:
    """Refuse a run directory that another living process holds; a directory without a lock is free.

    Raises:
        UserError: it is held.
    """
    if is_held(path / LOCK) and not is_follower():  # rank 0 may be the one that holds it
        raise _in_use(path)


def _acquire(path: Path) -> int:
    """An open file that holds the directory's lock until it is closed or the process ends.

    Raises:
        UserError: another process holds it.
    """
    try:
        handle = try_lock(path / LOCK)
    except OSError as error:
        hint = f"{error.strerror}; run.dir=… goes on in another directory"
        raise UserError("the run directory cannot be written", key="run.dir", value=path, hint=hint) from error
    if handle is None:
        raise _in_use(path)
    return handle


def _in_use(path: Path) -> UserError:
    holder = (path / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    hint = f"by {holder}; wait or stop it"
    return UserError("the run directory is in use", key="run.dir", value=path, hint=hint)


class Places:
    """What lies where in a run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """The log of metrics."""
        return self.path / METRICS


class RunDir(Places):
    """A run's directory, held by this process until :meth:`close`.

    Raises:
        UserError: it exists (``new=True``), is missing (``new=False``), or another living process holds it.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        super().__init__(path)
        if new:
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                raise UserError("the run directory exists", key="run.dir", value=path, hint="choose another") from error
            except OSError as error:
                raise UserError(
                    "the run directory cannot be made", key="run.dir", value=path, hint=str(error.strerror)
                ) from error
        self._lock = _acquire(path)
        _HELD.add(self)
        write_holder(self._lock, f"pid {os.getpid()} on host {socket.gethostname()}")
        self.checkpoints.mkdir(exist_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return FollowedRunDir, (self.path,)  # rank 0 sends it to the other ranks, and a lock cannot be sent

    def write(self, texts: Mapping[str, str]) -> None:
        """Put further files into the directory."""
        for name, text in texts.items():
            write_text(self.path / name, text)

    def write_status(self, status: str, **facts: Any) -> None:
        """Put ``status`` and further facts into ``run.json``, keeping what stands there; an end is sealed."""
        known = self._known()
        known.pop(SEAL, None)
        seal = {} if status == RUNNING else {SEAL: sealed(self.path)}
        write_json(self.path / RUN_JSON, known | facts | seal | {"status": status})

    def write_start(self, start: Mapping[str, Any], **facts: Any) -> None:
        """Put into ``run.json`` that a process trains from here on, after those whose steps it goes on from.

        Args:
            start: ``step``, at which it begins, and what this process and its settings are.
            facts: of the run.
        """
        before = [one for one in self._known().get("starts") or [] if one["step"] < start["step"]]
        self.write_status(RUNNING, **facts, starts=[*before, dict(start)])

    def _known(self) -> dict[str, Any]:
        return read_run_json(self.path) if (self.path / RUN_JSON).is_file() else {}

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_HELD: weakref.WeakSet[RunDir] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In a process that was forked, e.g. to read batches: the directory is to be free when its parent is gone."""
    for one in list(_HELD):
        one.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


class FollowedRunDir(Places):
    """The same directory on the ranks that leave the writing to rank 0."""

    def write(self, texts: Mapping[str, str]) -> None:
        """Nothing: rank 0 does."""

    def write_status(self, status: str, **facts: Any) -> None:
        """Nothing: rank 0 does."""

    def write_start(self, start: Mapping[str, Any], **facts: Any) -> None:
        """Nothing: rank 0 does."""

    def close(self) -> None:
        """Nothing is held."""
