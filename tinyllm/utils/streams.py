"""Makes standard output and standard error safe to write to: closed, in any encoding, or without a reader."""

import errno
import io
import os
import sys
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""Errors when the reader of a pipe has ended (``| head``) or the terminal was closed."""


def prepare_streams(*, ends_with_reader: bool = False) -> None:
    """Make the standard streams safe to write to. Call it before anything is printed.

    A character that the encoding lacks becomes ``?``. A closed stream (``>&-``) discards its output, and no file
    opened later takes its descriptor. When the reader leaves, output is discarded and the program continues.

    Args:
        ends_with_reader: exit with code 0 when the reader of standard output leaves, as for programs that only print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _safe(sys.stdout, sys.__stdout__, 1, errors="replace", ends=ends_with_reader)
    sys.stderr = _safe(sys.stderr, sys.__stderr__, 2, errors="backslashreplace", ends=False)


def _safe(stream: TextIO | None, original: TextIO | None, number: int, *, errors: str, ends: bool) -> TextIO:
    """A safe stream over a descriptor. A stream that replaced the original, as in tests, only gets ``errors``."""
    if stream is not None and stream is not original:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
        return stream
    encoding, by_line = "utf-8", number == 2
    if stream is not None:
        stream.flush()
        encoding, by_line = stream.encoding or encoding, by_line or stream.isatty()
    raw = io.BufferedWriter(_Unbreakable(number, ends=ends))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=by_line)


class _Unbreakable(io.RawIOBase):
    """A descriptor that discards output once its reader has left."""

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
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._number)  # on the descriptor, so that output of C libraries is discarded too
        os.close(null)
        if self._ends:
            sys.exit(0)
        return len(data)
