"""Lock files, which a dead process does not keep."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllm.errors import UserError

_NO_LOCKS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
"""How a file system says that it has no locks."""
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
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        if _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return descriptor
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Whether another process has the lock file ``path``, which need not be writable.

    One that is not there nobody has, nor one that may not be read.
    """
    try:
        descriptor = _open(path, os.O_RDONLY)
    except (OSError, UserError):
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file ``path``; calls ``waiting`` once if another process has it, and waits for that to end.

    The lock belongs to the open file, so it is free the moment its holder ends, however it ends.
    """
    descriptor = try_lock(path)
    if descriptor is None:
        waiting()
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        _flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_holder(descriptor: int, text: str) -> None:
    """Say in a lock file that is held who holds it; not if it has other names, for it would be in those files too."""
    if os.fstat(descriptor).st_nlink == 1:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode("utf-8", "replace"))


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
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


def _flock(descriptor: int, operation: int) -> bool:
    """Take a lock; False: another process has it. Where there are no locks nobody can have it."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
