"""Lock files that the system releases when their process ends, even by SIGKILL (``flock``)."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.utils.platforms import module, open_flags

fcntl, msvcrt = module("fcntl"), module("msvcrt")

_NO_LOCKS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
"""Errors of a file system without locks."""
_BYTE = 1 << 30
"""The byte locked on Windows, beyond the content: other processes cannot read a locked byte."""
_TRIES, _PAUSE_S = 3, 0.02
""":func:`is_held` takes the lock for an instant, so one failed attempt proves nothing."""


def try_lock(path: Path) -> int | None:
    """Lock the file ``path``, creating it if needed; closing the returned descriptor unlocks it.

    On a file system without locks it returns a descriptor that locks nothing.

    Returns:
        None if another process has the lock.

    Raises:
        UserError: ``path`` is not a regular file.
        OSError: it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path, "O_RDWR", "O_CREAT")
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        if _take(descriptor):
            return descriptor
    os.close(descriptor)
    return None


def share_lock(path: Path) -> int:
    """Lock the file ``path`` together with any number of other processes, creating it if needed.

    Waits for a process that has it alone. Closing the returned descriptor unlocks it.

    Raises:
        UserError: ``path`` is not a regular file.
        OSError: it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path, "O_RDWR", "O_CREAT")
    if fcntl is None:
        _take(descriptor, shared=True)  # Windows has no shared locks: one of the processes holds it for all
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    return descriptor


def is_held(path: Path, *, shared: bool = False) -> bool:
    """Whether another process has locked the file ``path``. A missing or unreadable file counts as unlocked.

    Args:
        shared: count locks of :func:`share_lock` too.
    """
    try:
        descriptor = _open(path, "O_RDONLY")
    except (OSError, UserError):
        return False
    try:
        return not _take(descriptor, shared=not shared)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of ``path`` inside the block. If another process holds it, call ``waiting`` once and wait."""
    locked_at_once = try_lock(path)
    if locked_at_once is None:
        waiting()
    descriptor = _open(path, "O_RDWR", "O_CREAT") if locked_at_once is None else locked_at_once
    try:
        if locked_at_once is None:
            _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def write_holder(descriptor: int, text: str) -> None:
    """Write the lock's holder into its file, unless that has hard links: it might be a file that must not change."""
    if os.fstat(descriptor).st_nlink == 1:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode("utf-8", "replace"))


def _open(path: Path, *flags: str) -> int:
    try:
        descriptor = os.open(path, open_flags(*flags, "O_NOFOLLOW", "O_NONBLOCK"), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_lock_file(path, "a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock_file(path, "not a regular file")
    return descriptor


def _no_lock_file(path: Path, what: str) -> UserError:
    return UserError("not a lock file", file=path, hint=f"it is {what}; remove it if no process uses the directory")


def _take(descriptor: int, *, shared: bool = False) -> bool:
    """Try to take a lock; False if another process has it. True on a file system without locks."""
    try:
        if fcntl is not None:
            # Not lockf: its lock would end when any other descriptor of the file is closed in this process.
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif msvcrt is not None:
            _lock_byte(descriptor)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _wait_for(descriptor: int) -> None:
    """Wait for a lock and take it."""
    if fcntl is None:
        while not _take(descriptor):
            time.sleep(_PAUSE_S)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _lock_byte(descriptor: int) -> None:
    """Take the lock on Windows, which only locks ranges of bytes."""
    os.lseek(descriptor, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
