"""Failed writes as errors that name the file and the reason."""

import errno
import os
import re
import shutil
from pathlib import Path

from tinyllm.errors import UserError

_SIGNS = ("unexpected pos", "write", "iostream error", "failed with strerror")
"""Parts of torch's messages when a file could not be written."""


class readable_write_errors:
    """Turns a failed write inside the block into a UserError that names the file and the free space.

    torch and safetensors raise errors of their own, without errno. Where their text gives the system's reason, that is
    told; where it gives none, the disk is full, and the free space is looked up.

    Args:
        path: the file.
        kept: what remains intact, for the message.
    """

    def __init__(self, path: Path, *, kept: str = "") -> None:
        self.path, self.kept = path, f"; {kept}" if kept else ""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        opaque = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
        safetensors = kind is not None and kind.__name__ == "SafetensorError"
        if not (opaque or safetensors or isinstance(error, OSError)):
            return
        number, reason = _reason(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or reason is None:
            raise UserError(
                "no space left while writing",
                file=self.path,
                hint=f"{_free(self.path.parent)}{self.kept} ({error})",
            ) from error
        raise UserError(f"cannot write: {reason}", file=self.path, hint=self.kept.removeprefix("; ")) from error


_RUST_REASON = re.compile(r"I/O error: (.+) \(os error (\d+)\)")
_TORCH_REASON = re.compile(r"failed with strerror: (.+)")


def _reason(error: BaseException | None) -> tuple[int | None, str | None]:
    """The errno and the reason of a failed write, as far as the error or its text tells them."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    if found := _RUST_REASON.search(str(error)):
        return int(found[2]), found[1]
    if found := _TORCH_REASON.search(str(error)):
        return next((number for number in errno.errorcode if os.strerror(number) == found[1]), None), found[1]
    return None, None


def _free(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free / 1e6:.1f} MB are free there"
    except OSError as error:  # the disk is unplugged
        return f"free space unknown: {error.strerror}"
