"""File formats that are not plain text, recognized by their first bytes, and what to do with such a file."""

import codecs
import os
import re
import shlex
from collections import Counter
from pathlib import Path

from tinyllm.errors import UserError

HEAD = 8192  # bytes that are examined; as in git, a NUL among them marks a file as binary

_TABLE = "write its text as JSON lines (pandas: to_json(…, orient='records', lines=True)) and use dataset=jsonl"

# Pattern of the first bytes, name of the format, how to get text from it. The first match wins.
_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\x1f\x8b", "gzip-compressed", "unpack it first: gunzip -k {path}"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2-compressed", "unpack it first: bunzip2 -k {path}"),
    (rb"\xfd7zXZ\0", "xz-compressed", "unpack it first: unxz -k {path}"),
    (rb"\x5d\0\0..(\xff{8}|.{5}\0\0\0)", "LZMA-compressed", "unpack it first: unlzma -k {path}"),
    (rb"x[\x9c\xda]", "zlib-compressed", "unpack it first: zlib-flate -uncompress < {path}"),
    (rb"[\x25-\x28]\xb5\x2f\xfd", "Zstandard-compressed", "unpack it first: unzstd {path}"),
    (rb"\x04\x22\x4d\x18", "LZ4-compressed", "unpack it first: unlz4 -k {path}"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x {path}"),
    (rb"Rar!\x1a\x07", "a RAR archive", "unpack it first: unrar x {path}"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", "unpack it first: unzip {path}"),
    (rb".{257}ustar", "a tar archive", "unpack it first: tar -xf {path}"),
    (rb"%PDF-\d\.\d", "a PDF", "extract its text first: pdftotext {path}"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "save it as plain text in UTF-8"),
    (rb"PAR[1E][\0-\x08\x0e-\x1f]", "a Parquet table", "dataset=parquet reads its text"),
    (rb"ARROW1\0\0|\xff\xff\xff\xff[^\0]..\0\x10\0\0\0", "an Arrow table", _TABLE),
    (rb"Obj\x01", "an Avro table", _TABLE),
    (rb"\x80[\x03-\x05][\x95\]}c]", "a Python pickle", "write its text as JSON lines and use dataset=jsonl"),
    (rb"SQLite format 3\0", "an SQLite database", "write its text as JSON lines and use dataset=jsonl"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its text as UTF-8, or its token ids with numpy.save"),
    (rb"\x93NUMPY", "a NumPy array", "dataset=npy reads arrays of token ids"),
    (rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP", "an image", "choose text files"),
)  # fmt: skip
_PATTERNS = [(re.compile(start, re.DOTALL), kind, advice) for start, kind, advice in _FORMATS]
_ADVICE = {kind: advice for _, kind, advice in _FORMATS}
COMPRESSED = frozenset(("gzip-compressed", "bzip2-compressed", "xz-compressed", "Zstandard-compressed"))
"""Formats that ``data/compression.py`` unpacks; their names are seen only where a file is not unpacked."""

_OFFICE = "an office document"
_PYTORCH = "a PyTorch checkpoint"
NUMPY_ARCHIVE = "a NumPy archive"
_ZIPPED = {
    **dict.fromkeys((".docx", ".odt", ".pptx", ".xlsx", ".epub"), _OFFICE),
    ".npz": NUMPY_ARCHIVE,
    **dict.fromkeys((".pt", ".pth"), _PYTORCH),
}
_ADVICE |= {
    _OFFICE: "save it as plain text in UTF-8, or: pandoc -t plain {path}",
    NUMPY_ARCHIVE: "write one array of token ids with numpy.save and use dataset=npy",
    _PYTORCH: "choose text files",
}

_MARKED = {  # the order matters: the mark of UTF-32LE starts with that of UTF-16LE
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

RAW = "raw numbers without a header, like nanoGPT's train.bin"
BINARY = "binary"
_ADVICE |= {RAW: "dataset=bin reads token ids", BINARY: "it has a NUL byte near its start, which text never has"}


def kind_of(head: bytes, name: str) -> str:
    """The format of a file with these first bytes, e.g. "a PDF" or "gzip-compressed"; "" for text.

    UTF-16 and UTF-32 with a byte order mark count as text, though in the wrong encoding and with NUL bytes.
    """
    for pattern, kind, _ in _PATTERNS:
        if pattern.match(head):
            return _ZIPPED.get(os.path.splitext(name)[1].lower(), kind) if kind == "a zip archive" else kind
    if head.startswith(tuple(_MARKED)) or b"\0" not in head[:HEAD]:
        return ""
    return RAW if name.lower().endswith(".bin") else BINARY


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 encoding of a text; "" for any other content.

    Without a byte order mark only UTF-16 in ASCII letters is recognized, in which every other byte is NUL.
    """
    for mark, encoding in _MARKED.items():
        if head.startswith(mark):
            return encoding
    pairs = len(head) // 2
    even, odd = (bytes(head[first : 2 * pairs : 2]) for first in (0, 1))
    for letters, blank, encoding in ((even, odd, "UTF-16LE"), (odd, even, "UTF-16BE")):
        if pairs > 1 and not blank.strip(b"\0") and letters.isascii() and b"\0" not in letters:
            return encoding
    return ""


def advice_for(kind: str, file: str | Path) -> str:
    """What to do with a file of this format."""
    return _ADVICE[kind].format(path=shlex.quote(str(file)))


def counted(kinds: Counter[str]) -> str:
    """The number of files of each format, without articles: "2 PDF, 1 gzip-compressed"."""
    return ", ".join(f"{count:,} {kind.removeprefix('an ').removeprefix('a ')}" for kind, count in kinds.most_common())


def refuse_kind(head: bytes, file: str | Path) -> None:
    """Refuse a file whose first bytes are those of a known format, or of text in UTF-16 or UTF-32.

    Files that are binary but of no known format pass: reading them fails later, with the offset of the bad byte.

    Raises:
        UserError: the file has such a format; says what to do with it.
    """
    if encoding := _wide_encoding(head):
        hint = f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(file))}"
        raise UserError(f"the file is {encoding}, not UTF-8", file=file, hint=hint)
    kind = kind_of(head, str(file))
    if kind not in ("", BINARY):
        raise UserError(f"the file is {kind}, not text", file=file, hint=advice_for(kind, file))
