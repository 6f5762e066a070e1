"""Files: written whole or not at all, never through a link that somebody planted, read within bounds.

A run directory, a study or a cache may come from somebody else, or lie where others can write. So a file that is
written here is a new one under a name nobody can foresee (``O_EXCL``), renamed over the old one, and a file that is
opened in place is never a symbolic link (``O_NOFOLLOW``). What is read is a regular file of a bounded size.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.errors import UserError
from tinyllm.utils.platforms import open_flags

TEMPORARY = ".tmp-"
"""Begins the name of whatever is not finished."""
LONGEST_NAME = 255
"""Bytes in the name of a file, as far as file systems go."""
LARGEST = 64 << 20
"""Bytes of a file that is read as a whole; the index of the largest published models has 9 MB."""
DEEPEST = 64
"""Levels of nested containers; a run's own files have less than ten."""
MOST = 4_000_000
"""Containers in one JSON text: Python takes 64 bytes for an empty list whose text is two."""

_CREATE = open_flags("O_WRONLY", "O_CREAT", "O_NOFOLLOW")
_FLUSH = open_flags("O_RDWR" if sys.platform == "win32" else "O_RDONLY")
"""Windows flushes what may be written only, and no directories."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""How a file system says that it has no such call."""


def temporary(path: Path) -> Path:
    """A name beside ``path`` for what will be renamed to it; 64 random bits, so that nobody can have planted it."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name[-80:]}")


def create(path: Path) -> BinaryIO:
    """A new file, open for writing.

    Raises:
        FileExistsError: something has that name, be it a dangling link.
    """
    return os.fdopen(os.open(path, _CREATE | os.O_EXCL, 0o666), "wb")


def open_append(path: Path) -> BinaryIO:
    """The file, made where it is missing, open for writing at its end.

    Raises:
        OSError: it cannot be opened, or is a symbolic link (ELOOP).
    """
    return os.fdopen(os.open(path, _CREATE | os.O_APPEND, 0o666), "ab")


def renewed(path: Path) -> BinaryIO:
    """A new, empty file in the place of the one that is there, open for writing."""
    path.unlink(missing_ok=True)
    return create(path)


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file, flush it to the disk, rename it over ``path``.

    Args:
        path: the file; its directory exists.
        write: called with the open file.

    Raises:
        OSError: it cannot be written; what stood at ``path`` is untouched.
    """
    unfinished = temporary(path)
    try:
        with create(unfinished) as stream:
            write(stream)
            stream.flush()
            sync_open(stream.fileno())
        os.replace(unfinished, path)
        sync(path.parent)
    except BaseException:
        remove(unfinished)
        raise


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same as :func:`replace`, with an error for people; the directory is made where it is missing.

    Raises:
        UserError: no space is left, or the place cannot be written; what stood at ``path`` is untouched.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically; see :func:`write_atomic`."""
    write_atomic(path, lambda stream: stream.write(content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; a file name in it that is not UTF-8 is written as the bytes it has."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, for people to read too. What JSON has no number for (NaN, infinity) is null."""
    write_text(path, json.dumps(_finite(content), indent=1, default=str, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, as far as that works; of a link, the link alone.

    It is what cleans up after an error, so it raises none that would be told instead.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable, where the file system can."""
    try:
        descriptor = os.open(path, _FLUSH)
    except OSError:
        if path.is_dir():  # a directory that may be written but not read
            return
        raise
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """The same of an open file. Directories on FUSE, SMB and some network file systems cannot be flushed."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def set_mode(path: Path, mode: int) -> None:
    """Change a file's mode, where the file system has modes and lets us."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.EPERM, errno.EACCES):
            raise


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SIGNS = ("unexpected pos", "write", "iostream error")
"""What torch's errors say when a file could not be written."""


class translated:
    """Turns a failed write inside the block into one line that names the file and the space.

    torch and safetensors report a full disk without an errno, so the free space and the limits are looked at here.

    Args:
        path: the file.
        kept: what is whole all the same, e.g. "the checkpoints before it".
    """

    def __init__(self, path: Path, *, kept: str = "") -> None:
        self.path, self.kept = path, f"; {kept}" if kept else ""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        opaque = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
        safetensors = kind is not None and kind.__name__ == "SafetensorError"
        if full or opaque or safetensors:
            raise UserError(
                "no space left while writing",
                file=self.path,
                hint=f"{_free(self.path.parent)}{self.kept} ({error})",
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"cannot write: {error.strerror or error}", file=self.path) from error


def _free(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free / 1e6:.1f} MB are free there"
    except OSError as error:  # the disk is gone
        return f"how much is free there cannot be told: {error.strerror}"


def is_trusted(path: Path, *, root: Path) -> bool:
    """Whether a file or directory below ``root`` is ours, the administrator's, or of whoever ``root`` belongs to.

    In a cache that others can write to anybody may have planted it. Where there are no owners all is trusted.
    """
    if not hasattr(os, "geteuid"):
        return True
    try:
        return path.lstat().st_uid in (0, os.geteuid(), root.stat().st_uid)
    except OSError:
        return False


def is_file_name(name: str) -> bool:
    """Whether a text out of a file can be the name of a file beside it: no path, and one that file systems take."""
    try:
        return (
            0 < len(name.encode()) <= LONGEST_NAME and "/" not in name and "\0" not in name and name not in (".", "..")
        )
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def check_utf8(path: Path, *, key: str | None = None) -> None:
    """Refuse a path whose bytes are no UTF-8: safetensors and torch open files by text.

    Raises:
        UserError: it is such a path.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        where: dict[str, Any] = {"key": key, "value": shown} if key else {"file": shown}
        raise UserError("the path is not UTF-8", **where, hint="rename it, or choose another place") from error


def in_home(path: str | Path) -> Path:
    """A path, ``~`` at its beginning being the home directory.

    Raises:
        UserError: nobody knows which that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError("no home directory is known", file=path, hint="set HOME, or give the path in full") from error


def read_bytes(file: Path, *, what: str = "cannot be read", largest: int = LARGEST) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: it is missing, is something else (a pipe would be waited for), or is larger; the line says ``what``.
    """
    try:
        with open(os.open(file, open_flags("O_RDONLY", "O_NONBLOCK")), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(what, file=file, hint="not a regular file")
            content = stream.read(largest + 1) if status.st_size <= largest else b""
    except OSError as error:
        raise UserError(what, file=file, hint=error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the name
        raise UserError(what, file=repr(str(file)), hint=str(error)) from error
    if max(status.st_size, len(content)) > largest:
        size = max(status.st_size, len(content))
        raise UserError(what, file=file, hint=f"{size / 1e6:.1f} MB; such a file has {largest / 1e6:.0f} MB at most")
    return content


def read_text(file: Path, *, what: str = "cannot be read", largest: int = LARGEST) -> str:
    """The content of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: see :func:`read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(file, what=what, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8"
        raise UserError(what, file=file, hint=place) from error


def read_json(file: Path, *, of: type = dict, what: str = "a damaged file", largest: int = LARGEST) -> Any:
    """The content of a JSON file, an object unless ``of`` says something else.

    Raises:
        UserError: it cannot be read, is not JSON (see :func:`parse_json`), or holds something else.
    """
    text = read_text(file, what=what, largest=largest)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(what, file=file, hint=str(error)) from error
    if not isinstance(content, of):
        raise UserError(what, file=file, hint=f"it must hold {_NAMES.get(of, of.__name__)}")
    return content


_NAMES: dict[type, str] = {dict: "one JSON object", list: "a JSON list", object: "JSON"}


def parse_json(text: str | bytes, *, finite: bool = True, unique: bool = False, most: int = MOST) -> Any:
    """What a JSON text says, in bounded time and memory.

    Args:
        text: of a bounded size; bytes are UTF-8.
        finite: refuse NaN and infinity, which are not JSON.
        unique: refuse an object that has a key twice.
        most: containers at most.

    Raises:
        ValueError: it is not JSON (a ``json.JSONDecodeError`` says where), or is nested too deep.
    """
    containers = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if containers > most:
        raise ValueError(f"more than {most:,} lists and objects")
    hooks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite_float} if finite else {}
    if unique:
        hooks["object_pairs_hook"] = _unique
    try:
        content = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "int_max_str_digits" in str(error):  # what Python advises is for its own programs
            raise ValueError(f"a whole number has more than {sys.get_int_max_str_digits():,} digits") from None
        raise
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        level = [
            below
            for node in level
            for below in (node.values() if isinstance(node, dict) else node)
            if isinstance(below, dict | list)
        ]
        if not level:
            return content
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in keys if names.count(key) > 1)
        raise ValueError(f"the key {twice} is there {names.count(twice)} times")
    return keys
