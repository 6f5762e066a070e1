"""Use of a token cache: a shared lock, which ends with the process, and the time of the last use."""

import os
from contextlib import suppress
from pathlib import Path

from tinyllm.utils.locks import share_lock

USED = ".used.lock"
"""End of the name of the file that processes lock while they use a cache; its time is that of the last use."""


class CacheUse:
    """Marks a cache as in use until this object is gone or its process has ended, even by SIGKILL.

    Args:
        root: the folder of all caches; where it cannot be written, nothing is marked.
        key: the cache.
    """

    def __init__(self, root: Path, key: str) -> None:
        self._descriptor: int | None = None
        with suppress(OSError):  # a cache that others share read-only
            self._descriptor = share_lock(root / f"{key}{USED}")
            os.utime(root / f"{key}{USED}")

    def __del__(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)


def preparing(root: Path, key: str) -> Path:
    """The file that a process locks while it prepares a cache."""
    return root / f"{key}.lock"


def last_used(root: Path, key: str, folder: Path) -> float:
    """When a cache was last opened or written, in seconds since 1970."""
    with suppress(OSError):
        return max((root / f"{key}{USED}").stat().st_mtime, folder.stat().st_mtime)
    return folder.stat().st_mtime
