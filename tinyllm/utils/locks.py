"""Lock files, which a dead process does not keep."""

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
"""How a file system says that it has no locks."""
_BYTE = 1 << 30
_TRIES, _PAUSE_S = 3, 0.02
"""Whoever looks at a lock (:func:`is_held`) has it for an instant."""


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock file ``path``, or None if another process has it. Close it to let go.

    On a file system without locks nothing is held, and the descriptor is one of the file all the same.

    Raises:
        UserError: there is something else than a lock file.
        OSError: it cannot be made.
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


def is_held(path: Path) -> bool:
    """Whether another process has the lock file ``path``, which need not be writable.

    One that is not there nobody has, nor one that may not be read.
    """
    try:
        descriptor = _open(path, "O_RDONLY")
    except (OSError, UserError):
        return False
    try:
        return not _take(descriptor, shared=True)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file ``path``; calls ``waiting`` once if another process has it, and waits for that to end.

    The lock belongs to the open file, so it is free the moment its holder ends, however it ends.
    """
    taken = try_lock(path)
    if taken is None:
        waiting()
    descriptor = _open(path, "O_RDWR", "O_CREAT") if taken is None else taken
    try:
        if taken is None:
            _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def write_holder(descriptor: int, text: str) -> None:
    """Say in a lock file that is held who holds it; not if it has other names, for it would be in those files too."""
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
    """Take a lock; False: another process has it. Where there are no locks nobody can have it."""
    try:
        if fcntl is not None:
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
    """Take a lock as soon as no other process has it."""
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
    """The lock of Windows: of a byte, which nobody else can read or write then, so it is one behind the content."""
    os.lseek(descriptor, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
