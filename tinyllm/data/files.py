"""Reading text files in chunks, also compressed ones, with errors that name file and byte."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllm.data.compression import opened
from tinyllm.data.content_hashes import without_marks
from tinyllm.data.formats import BINARY, HEAD, kind_of, refuse_kind
from tinyllm.errors import UserError

CHUNK = 2**20
NOT_UTF8 = "convert the file to UTF-8, or read it with dataset.errors=replace"
NOT_TEXT = "this is not a text file; dataset.errors=replace reads it anyway"


def read_text(file: str | Path, *, errors: str = "strict", key: str = "dataset.path") -> Iterator[str]:
    """The text of a UTF-8 file in chunks of about 1 MiB; offsets count uncompressed bytes.

    Byte order marks at the start are dropped (some programs add a second one), and the line endings CR LF and CR become
    LF, as in Python's ``open``.

    Args:
        errors: "strict", or "replace": invalid UTF-8 and NUL become U+FFFD.

    Raises:
        UserError: with file and offset, a byte that is not UTF-8 or is NUL; or, whatever ``errors`` is, the file has a
            format that is not text.
    """
    newlines: Any = io.IncrementalNewlineDecoder(None, translate=True)
    offset, pending, start, binary = 0, b"", True, False
    with opened(file) as stream:
        while True:
            block = stream.read(CHUNK)
            data = pending + block
            if start:
                start = False
                refuse_kind(data[:HEAD], file)
                binary = kind_of(data[:HEAD], str(file)) == BINARY
                whole, data = len(data), without_marks(data)
                offset = whole - len(data)
            text, used = _decode(data, not block, errors, file, offset, NOT_TEXT if binary else NOT_UTF8)
            if "\0" in text:
                if errors == "strict":
                    at = offset + data.index(b"\0")
                    raise UserError(f"a NUL byte at offset {at}", file=file, hint=NOT_TEXT)
                text = text.replace("\0", "\ufffd")
            text = newlines.decode(text, final=not block)
            if text:
                yield text
            if not block:
                return
            offset += used
            pending = data[used:]


def read_lines(file: str | Path) -> Iterator[bytes]:
    """The lines of a file with their endings, without byte order marks at the start.

    Raises:
        UserError: the file cannot be read or has a format that is not text.
    """
    refuse_kind(read_head(file), file)
    with opened(file) as stream:
        for number, line in enumerate(stream):
            yield line if number else without_marks(line)


def read_head(file: str | Path, *, unpack: bool = True) -> bytes:
    """The first bytes of a file, enough to recognize its format; of a compressed one those of its content.

    Args:
        unpack: false: the bytes as stored.

    Raises:
        UserError: it cannot be read.
    """
    with opened(file, unpack=unpack) as stream:
        return stream.read(HEAD)


def look_at(file: str | Path) -> str:
    """The format of a file, "" for text; see :func:`kind_of`. Raises UserError if it cannot be read."""
    return kind_of(read_head(file), str(file))


def _decode(data: bytes, final: bool, errors: str, file: str | Path, offset: int, hint: str) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, errors, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte 0x{data[error.start]:02x} at offset {offset + error.start} is not UTF-8",
            file=file,
            hint=hint,
        ) from None


def require_errors_mode(errors: str) -> str:
    """Return ``errors`` if it is valid. Raises UserError otherwise."""
    if errors not in ("strict", "replace"):
        raise UserError(
            "unknown way to handle invalid bytes", key="dataset.errors", value=errors, hint="strict or replace"
        )
    return errors
