"""Reading gzip, bzip2, xz and Zstandard files as a stream; the format is recognized by the first bytes."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.errors import UserError
from tinyllm.utils.late_imports import library

BLOCK = 2**16  # compressed bytes per step, which bounds how much a step can unpack
SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
"""Usual endings of the names of such files, for the choice of files in a folder; the content decides what they are."""
LARGEST_WINDOW = 2**31
"""Largest window in bytes that a Zstandard file may ask for (``zstd --long=31``)."""


def _zstandard() -> Any:
    hint = "pip install 'tinyllm[data]', or unpack the file first: unzstd FILE"
    return library("zstandard", hint=hint).ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()


_FORMATS: tuple[tuple[re.Pattern[bytes], str, Callable[[], Any]], ...] = (
    (re.compile(rb"\x1f\x8b"), "gzip", lambda: zlib.decompressobj(wbits=31)),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2", bz2.BZ2Decompressor),  # a text may begin with BZh
    (re.compile(rb"\xfd7zXZ\0"), "xz", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ)),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "Zstandard", _zstandard),
)
"""First bytes, name, and what makes a decompressor with the interface of ``bz2.BZ2Decompressor``."""
LONGEST_MAGIC = 10  # of bzip2


def compression_of(head: bytes) -> str:
    """The compression of a file with these first bytes: "gzip", "bzip2", "xz", "Zstandard" or ""."""
    return next((name for magic, name, _ in _FORMATS if magic.match(head)), "")


def is_compressed(file: str | Path) -> bool:
    """Whether :func:`opened` unpacks a file. Raises UserError if it cannot be read."""
    with opened(file, unpack=False) as stream:
        return bool(compression_of(stream.read(LONGEST_MAGIC)))


@contextmanager
def opened(file: str | Path, *, unpack: bool = True) -> Iterator[BinaryIO]:
    """Open a file for reading its uncompressed bytes; a file that is not compressed is read as it is.

    Args:
        unpack: false: read any file as it is.

    Raises:
        UserError: it cannot be read or, while it is read, its compressed data are damaged.
    """
    try:
        with open(file, "rb") as raw:
            head = raw.read(LONGEST_MAGIC)
            raw.seek(0)
            if unpack and compression_of(head):
                yield io.BufferedReader(_Unpacked(raw, file), 2**20)
            else:
                yield raw
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", file=file) from None


class _Unpacked(io.RawIOBase):
    """The uncompressed bytes of a stream of one or more compressed members."""

    def __init__(self, raw: BinaryIO, file: str | Path) -> None:
        self._blocks = _unpack(raw, file)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _unpack(raw: BinaryIO, file: str | Path) -> Iterator[bytes]:
    """The uncompressed blocks of a file. Members follow each other, as ``cat`` or a parallel compressor leaves them."""
    offset, name, member = 0, "", None
    while block := raw.read(BLOCK):
        start, offset = offset, offset + len(block)
        while block:
            if member is None:
                if not block.strip(b"\0"):  # padding, which tar and tapes add
                    break
                if len(block) < LONGEST_MAGIC:
                    more = raw.read(LONGEST_MAGIC - len(block))
                    block, offset = block + more, offset + len(more)
                name = compression_of(block) or name
                member = next(make for _, known, make in _FORMATS if known == name)()
            try:
                unpacked = member.decompress(block)
            except UserError:
                raise
            except Exception as error:  # each library has exceptions of its own
                what = f"damaged {name} data between offsets {start:,} and {offset:,}"
                raise UserError(what, file=file, hint=f"{error}; fetch or compress the file again") from None
            if unpacked:
                yield unpacked
            if not member.eof:
                break
            block, member = member.unused_data, None
    if member is not None:
        what = f"the {name} data end in the middle, at offset {offset:,}"
        raise UserError(what, file=file, hint="the file was cut off; fetch or compress it again")
