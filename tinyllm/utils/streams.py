"""Standard output and errors that nothing outside can break: closed, in another encoding, or with a reader who left."""

import errno
import io
import os
import sys
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""The reader of the pipe has ended (``| head``); the terminal is closed."""


def prepare_streams(*, ends_with_reader: bool = False) -> None:
    """Make the standard streams safe to write to, whatever they are; call it before anything is printed.

    A character that the encoding does not have is shown as ``?``. A stream that was closed (``>&-``) swallows what it
    gets, and no file that is opened later takes its number. When a reader leaves, a program that makes something goes
    on without one.

    Args:
        ends_with_reader: the program is of no use without a reader, and ends with exit code 0 when it leaves.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _safe(sys.stdout, sys.__stdout__, 1, errors="replace", ends=ends_with_reader)
    sys.stderr = _safe(sys.stderr, sys.__stderr__, 2, errors="backslashreplace", ends=False)


def _safe(stream: TextIO | None, original: TextIO | None, number: int, *, errors: str, ends: bool) -> TextIO:
    """The stream over a descriptor; one that somebody put in its place only learns about characters."""
    if stream is not None and stream is not original:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
        return stream
    encoding, by_line = "utf-8", number == 2
    if stream is not None:
        stream.flush()
        encoding, by_line = stream.encoding or encoding, by_line or stream.isatty()
    raw = io.BufferedWriter(_Lasting(number, ends=ends))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=by_line)


class _Lasting(io.RawIOBase):
    """A descriptor that leads nowhere once its reader has left."""

    def __init__(self, number: int, *, ends: bool) -> None:
        self._number, self._ends = number, ends

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self._number, data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        if self._ends:
            sys.exit(0)
        return len(data)
