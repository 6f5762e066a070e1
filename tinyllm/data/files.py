"""Finding the files of a corpus, and reading text from them without holding a file in memory."""

import codecs
import glob
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.errors import UserError

CHUNK = 2**20
SNIFF = 8192  # a NUL in the first bytes of a file marks it as binary, as git does it


def find_files(path: str, *, key: str, suffixes: Sequence[str] = ()) -> list[Path]:
    """The files that ``path`` names: itself, everything in a folder, or the matches of a glob (``**`` too).

    Hidden files and folders are passed over in folders and globs. In a fixed order that does not depend on
    where the folder lies.

    Args:
        key: the config key, for errors.
        suffixes: of a folder take only files that end like this; empty: all.

    Raises:
        UserError: nothing is there.
    """
    if not path.strip():
        raise UserError("no path is given", key=key, value=path, hint="a file, a folder or a glob")
    place = Path(path).expanduser()
    if os.path.isfile(place):  # unlike Path's, it says no where a folder may not be entered
        return [place]
    if os.path.isdir(place):
        found = [file for file in _walk(place) if not suffixes or file.suffix in suffixes]
        if not found:
            wanted = " or ".join(suffixes) if suffixes else "text"
            hint = "hidden files do not count; a file or a glob may be given instead"
            raise UserError(f"the folder holds no {wanted} file", key=key, value=path, hint=hint)
        return found
    if glob.has_magic(str(place)):
        matches = glob.glob(str(place), recursive=True)
        found = [Path(match) for match in sorted(matches) if os.path.isfile(match)]
        if not found:
            raise UserError("no file matches", key=key, value=path, hint="check the pattern, and quote it in the shell")
        return found
    if os.path.lexists(place):
        raise UserError("not a readable file or folder", key=key, value=path)
    raise UserError("no such file or folder", key=key, value=path, hint=_nearest(place))


def _walk(folder: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".") and os.path.isfile(Path(root, name))]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _nearest(place: Path) -> str:
    folder = place.absolute().parent
    while not os.path.isdir(folder):
        folder = folder.parent
    if not os.access(folder, os.X_OK):
        return f"{folder} may not be entered"
    return f"{folder} exists, but not {place.absolute().relative_to(folder)}"


def is_binary(file: Path) -> bool:
    """Whether the beginning of the file says that it is not text. Raises UserError if it cannot be read."""
    with _opened(file) as stream:
        head = stream.read(SNIFF)
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def read_text(file: Path, *, errors: str = "strict", key: str = "dataset.path") -> Iterator[str]:
    """The text of a UTF-8 file in chunks of about 1 MiB.

    A byte order mark at the start is dropped, and the line ends CR LF and CR become LF, as Python's ``open``
    does it.

    Args:
        errors: "strict", or "replace": what is not UTF-8, and NUL, become U+FFFD.

    Raises:
        UserError: with file and byte offset for a byte that is not UTF-8, or a NUL (which text does not
        have).
    """
    newlines: Any = io.IncrementalNewlineDecoder(None, translate=True)
    offset, pending, start = 0, b"", True
    with _opened(file) as stream:
        while True:
            block = stream.read(CHUNK)
            data = pending + block
            if start:
                start = False
                if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    hint = f"convert it: iconv -f UTF-16 -t UTF-8 '{file}'"
                    raise UserError("the file is UTF-16, not UTF-8", file=file, hint=hint)
                if data.startswith(codecs.BOM_UTF8):
                    offset, data = 3, data[3:]
            text, used = _decode(data, not block, errors, file, offset)
            if "\0" in text:
                if errors == "strict":
                    at = offset + data.index(b"\0")
                    hint = "this is not a text file; dataset.errors=replace reads it all the same"
                    raise UserError(f"a NUL byte at offset {at}", file=file, hint=hint)
                text = text.replace("\0", "\ufffd")
            text = newlines.decode(text, final=not block)
            if text:
                yield text
            if not block:
                return
            offset += used
            pending = data[used:]


def read_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file, line ends included. Raises UserError if it cannot be read."""
    with _opened(file) as stream:
        yield from stream


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", file=file) from None


def _decode(data: bytes, final: bool, errors: str, file: Path, offset: int) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, errors, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte 0x{data[error.start]:02x} at offset {offset + error.start} is not UTF-8",
            file=file,
            hint="convert the file to UTF-8, or read it with dataset.errors=replace",
        ) from None


def require_errors_mode(errors: str) -> str:
    """``errors`` if it is one of the two ways to meet a bad byte, else UserError."""
    if errors not in ("strict", "replace"):
        raise UserError("unknown way to meet bad bytes", key="dataset.errors", value=errors, hint="strict or replace")
    return errors
