"""Writing files so that a crash, a kill or a full disk never leaves half of one in the place of a whole one."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.data.atomic import sync
from tinyllm.errors import UserError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Write under a temporary name, flush to the disk, rename over ``path``.

    Args:
        path: the file.
        write: called with the temporary path.

    Raises:
        UserError: no space is left; what stood at ``path`` is untouched.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with translated(path):
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, for people to read too."""
    write_atomic(path, lambda p: _write_text(p, json.dumps(content, indent=1, default=str) + "\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SIGNS = ("unexpected pos", "write", "iostream error")
"""What torch's errors say when a file could not be written."""


class translated:
    """Turns a failed write inside the block into one line that names the file and the space.

    torch and safetensors report a full disk without an errno, so the free space and the limits are looked at here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        opaque = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
        safetensors = kind is not None and kind.__name__ == "SafetensorError"
        if full or opaque or safetensors:
            free = shutil.disk_usage(self.path.parent).free
            raise UserError(
                "no space left while writing",
                file=self.path,
                hint=f"{free / 1e6:.1f} MB are free there; the checkpoints before it are whole ({error})",
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"cannot write: {error.strerror}", file=self.path) from error
