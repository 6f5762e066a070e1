"""Writes files atomically and reads files of bounded size, safely in directories that other users can write to.

A run, a study or a cache may be untrusted or lie in a shared folder. So every file is written under a new,
unpredictable name (``O_EXCL``) and renamed over the old one, files opened in place must not be symbolic links
(``O_NOFOLLOW``), and only regular files up to a given size are read.
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
from tinyllm.utils.write_errors import readable_write_errors

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and directories."""
LONGEST_NAME = 255
"""Bytes in a file name, the limit of all common file systems."""
LARGEST = 64 << 20
"""Bytes in a file that is read whole; the index of the largest published models has 9 MB."""
DEEPEST = 64
"""Levels of nested containers; the files of a run have fewer than ten."""
MOST = 4_000_000
"""Containers in a JSON text: an empty list takes 2 bytes as text and 64 in Python."""

_CREATE = open_flags("O_WRONLY", "O_CREAT", "O_NOFOLLOW")
_FLUSH = open_flags("O_RDWR" if sys.platform == "win32" else "O_RDONLY")
"""Windows flushes writable files only, and no directories."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Errors of a file system that does not support a call."""


def temporary(path: Path) -> Path:
    """A path beside ``path`` for a file that will be renamed to it.

    64 random bits make it a new one. It ends with ``.tmp``: ``glob("*.json")`` must not find half a JSON file.
    """
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name[-80:]}.tmp")


def create(path: Path) -> BinaryIO:
    """Create a file and open it for writing.

    Raises:
        FileExistsError: the name is taken, even if only by a dangling link.
    """
    return os.fdopen(os.open(path, _CREATE | os.O_EXCL, 0o666), "wb")


def open_append(path: Path) -> BinaryIO:
    """Open a file for appending; creates it if it is missing.

    Raises:
        OSError: it cannot be opened, or is a symbolic link (ELOOP).
    """
    return os.fdopen(os.open(path, _CREATE | os.O_APPEND, 0o666), "ab")


def open_read(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is a symbolic link (ELOOP).
    """
    return os.fdopen(os.open(path, open_flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK")), "rb")


def open_update(path: Path) -> BinaryIO:
    """Open an existing file for reading and writing.

    Raises:
        OSError: it cannot be opened, or is a symbolic link (ELOOP).
    """
    return os.fdopen(os.open(path, open_flags("O_RDWR", "O_NOFOLLOW")), "r+b")


def recreate(path: Path) -> BinaryIO:
    """Replace a file by a new, empty one, open for writing."""
    path.unlink(missing_ok=True)
    return create(path)


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file, flush it to disk, and rename it over ``path``.

    Args:
        path: the file; its directory exists.
        write: called with the open file.

    Raises:
        OSError: it cannot be written; an existing file at ``path`` is unchanged.
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
    """:func:`replace` with a readable error; creates the parent directory if needed.

    Raises:
        UserError: no space is left, or the file cannot be written; an existing file at ``path`` is unchanged.
    """
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically; see :func:`write_atomic`."""
    write_atomic(path, lambda stream: stream.write(content))


def write_text(path: Path, text: str) -> None:
    """Write text atomically as UTF-8. File names in it that are not UTF-8 keep their bytes (``surrogateescape``)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically. NaN and infinity, which JSON lacks, become null."""
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
    """Remove a file, a link, or a directory with its contents. Ignores errors.

    It cleans up after an earlier error, which a new error would hide.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a directory, to disk (fsync)."""
    try:
        descriptor = os.open(path, _FLUSH)
    except OSError:
        if path.is_dir():  # writable but not readable
            return
        raise
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """:func:`sync` for an open file. FUSE, SMB and some network file systems cannot flush directories; ignored."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def set_mode(path: Path, mode: int) -> None:
    """Change a file's mode, if the file system has modes and permits it."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.EPERM, errno.EACCES):
            raise


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_trusted(path: Path, *, root: Path) -> bool:
    """Whether a path below ``root`` is owned by this user, by root, or by the owner of ``root``.

    In a shared cache, other users can plant files. On systems without owners every file is trusted.
    """
    if not hasattr(os, "geteuid"):
        return True
    try:
        return path.lstat().st_uid in (0, os.geteuid(), root.stat().st_uid)
    except OSError:
        return False


def is_file_name(name: str) -> bool:
    """Whether a string is a plain file name: not a path, and accepted by file systems."""
    try:
        return (
            0 < len(name.encode()) <= LONGEST_NAME and "/" not in name and "\0" not in name and name not in (".", "..")
        )
    except UnicodeEncodeError:  # a lone surrogate
        return False


def check_utf8(path: Path, *, key: str | None = None) -> None:
    """Refuse a path that is not UTF-8, which safetensors and torch cannot open.

    Raises:
        UserError: the path is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        where: dict[str, Any] = {"key": key, "value": shown} if key else {"file": shown}
        raise UserError("the path is not UTF-8", **where, hint="rename it, or choose a different place") from error


def expand_home(path: str | Path) -> Path:
    """A path with ``~`` expanded to the home directory.

    Raises:
        UserError: no home directory is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError("no home directory is known", file=path, hint="set HOME, or give the path in full") from error


def read_bytes(file: Path, *, what: str = "cannot be read", largest: int = LARGEST) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: it is missing, not a regular file (a pipe would block), or too large; the message begins with
            ``what``.
    """
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        with open(os.open(file, open_flags("O_RDONLY", "O_NONBLOCK")), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(what, file=file, hint="not a regular file")
            # One byte more than allowed, for a file that grows or, like those in /proc, hides its size.
            content = stream.read(largest + 1) if status.st_size <= largest else b""
    except OSError as error:
        raise UserError(what, file=file, hint=error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the name
        raise UserError(what, file=repr(str(file)), hint=str(error)) from error
    if max(status.st_size, len(content)) > largest:
        size = max(status.st_size, len(content))
        raise UserError(what, file=file, hint=f"{size / 1e6:.1f} MB; at most {largest / 1e6:.0f} MB are read")
    return content


def read_text(file: Path, *, what: str = "cannot be read", largest: int = LARGEST) -> str:
    """The content of a regular UTF-8 file, without its byte order mark.

    Raises:
        UserError: as for :func:`read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(file, what=what, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8"
        raise UserError(what, file=file, hint=hint) from error


def read_json(file: Path, *, of: type = dict, what: str = "damaged file", largest: int = LARGEST) -> Any:
    """The content of a JSON file, which must have the type ``of``.

    Raises:
        UserError: it cannot be read, is not JSON (see :func:`parse_json`), or holds a different type.
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
    """Parse JSON in bounded time and memory.

    Args:
        text: the text, whose size the caller has bounded; bytes are UTF-8.
        finite: refuse NaN and infinity, which are not JSON.
        unique: refuse duplicate keys.
        most: maximum number of containers.

    Raises:
        ValueError: not JSON (a ``json.JSONDecodeError`` has the position), too large, or nested too deeply.
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
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "int_max_str_digits" in str(error):  # Python's message advises to change the limit
            raise ValueError(f"a whole number has more than {sys.get_int_max_str_digits():,} digits") from None
        raise
    if containers <= 1:  # nothing is nested; lines of a corpus are of this kind, and there are millions
        return content
    if isinstance(content, list) and containers == 1 + sum(isinstance(item, dict | list) for item in content):
        return content  # a list of flat containers, such as many records at once
    # Level by level, because recursion could exceed Python's own limit.
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
        raise ValueError(f"the key {twice} occurs {names.count(twice)} times")
    return keys
