"""Content hashes (sha256) of files, cached until a file changes."""

import codecs
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllm.data.compression import is_compressed, opened
from tinyllm.data.formats import COMPRESSED, HEAD, kind_of
from tinyllm.errors import UserError
from tinyllm.utils.files import is_trusted, read_json, write_bytes

Stamp = list[int]
LARGEST_MEMO = 512 << 20
"""Size limit of a memo in bytes; a corpus may have a million files."""
# A file modified more recently than this could change again without its timestamp changing.
SETTLED_NS = 2_000_000_000
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file and its stamp when it was found; the path is a string, because a corpus may have very many files."""

    path: str
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Content:
    """The cached facts about a file's content.

    Attributes:
        digest: sha256 of the bytes.
        size: number of bytes.
        kind: format if it is not text (``formats.kind_of``), "" for text; of a compressed file that of its content.
        text_digest: sha256 uncompressed, without byte order marks and with LF as line ending; None if equal to
            ``digest``.
        text_size: number of bytes of that text.
    """

    digest: bytes
    size: int
    kind: str
    text_digest: bytes | None
    text_size: int


def stamp_of(status: os.stat_result) -> Stamp:
    """Size, mtime, ctime and inode, one of which changes with every write: ctime cannot be set back."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def stamp(path: str | Path) -> Stamp:
    """The current stamp of a file."""
    return stamp_of(os.stat(path))


class ContentHashes:
    """Content hashes of the files of corpora.

    Args:
        folder: holds one memo file per corpus; need not exist or be writable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamps: dict[str, Stamp] = {}

    def of(self, files: Sequence[FoundFile]) -> dict[str, Content]:
        """The content of each file; files whose stamp is unchanged are not read again.

        Raises:
            UserError: a file cannot be read.
        """
        here = os.getcwd()
        names = [os.path.join(here, file.path) for file in files]
        listed = "\0".join(names).encode("utf-8", "surrogateescape")
        memo_file = self.folder / f"{hashlib.sha256(listed).hexdigest()[:32]}.json"
        memo = _read(memo_file) if is_trusted(memo_file, root=self.folder) else {}
        contents: dict[str, Content] = {}
        new: dict[str, list] = {}
        for file, name in zip(files, names, strict=True):
            known = memo.get(name)
            # Earlier versions noted compressed files as such, without looking into them.
            if known is None or known[:4] != file.stamp or not known[4] or known[6] in COMPRESSED:
                settled = time.time_ns() - max(file.stamp[1], file.stamp[2]) > SETTLED_NS
                known = [*file.stamp, settled, *_packed(_content(file.path))]
            new[name] = known
            self._stamps[file.path] = file.stamp
            contents[file.path] = _unpacked(known)
        if new != memo:
            with suppress(UserError):  # optional: without it the next start reads the files again
                write_bytes(memo_file, json.dumps(new).encode())
        return contents

    def stamps_digest(self) -> str:
        """sha256 (hex) of the files and their stamps; it changes whenever a file is written."""
        return hashlib.sha256(json.dumps(sorted(self._stamps.items())).encode()).hexdigest()

    def require_unchanged(self) -> None:
        """Refuse files that changed since :meth:`of`.

        Raises:
            UserError: a file changed or no longer exists.
        """
        for file, then in self._stamps.items():
            try:
                now = stamp(file)
            except OSError:
                now = []
            if now != then:
                raise UserError("the file changed while it was being read", file=file, hint="run the command again")


def _packed(content: Content) -> list:
    text = content.text_digest and content.text_digest.hex()
    return [content.digest.hex(), content.kind, text, content.text_size]


def _unpacked(entry: list) -> Content:
    size, _, _, _, _, digest, kind, text, text_size = entry
    return Content(bytes.fromhex(digest), size, kind, bytes.fromhex(text) if text else None, text_size)


def _read(file: Path) -> dict[str, list]:
    try:
        memo: dict[str, list] = read_json(file, largest=LARGEST_MEMO)
    except UserError:
        return {}
    return memo if all(map(_is_sound, memo.values())) else {}


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 9:
        return False
    *stamp, settled, digest, kind, text, size = entry
    return (
        all(isinstance(number, int) for number in stamp)
        and isinstance(settled, bool)
        and _is_digest(digest)
        and isinstance(kind, str)
        and (text is None or _is_digest(text))
        and isinstance(size, int)
    )


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and value.isascii() and value.isalnum()


def _content(file: str) -> Content:
    """The content of a file, read once from beginning to end."""
    whole, text = hashlib.sha256(), None  # the text gets a hash of its own from the first block that differs
    if is_compressed(file):
        return _compressed_content(file)
    head, size, text_size = b"", 0, 0
    for number, (block, plain) in enumerate(_blocks(file)):
        if number == 0:
            head = block[:HEAD]
        if plain is not block and text is None:
            text = whole.copy()
        whole.update(block)
        if text is not None:
            text.update(plain)
        size += len(block)
        text_size += len(plain)
    return Content(whole.digest(), size, kind_of(head, file), text.digest() if text else None, text_size)


def _compressed_content(file: str) -> Content:
    """The content of a compressed file: its bytes give the digest, the text in it everything else."""
    try:
        with open(file, "rb") as stream:
            whole, size = hashlib.file_digest(stream, "sha256"), stream.tell()
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", file=file) from None
    text, head, text_size = hashlib.sha256(), b"", 0
    for block, plain in _blocks(file):
        head = head or block[:HEAD]
        text.update(plain)
        text_size += len(plain)
    return Content(whole.digest(), size, kind_of(head, file), text.digest(), text_size)


def _blocks(file: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield each block uncompressed and as text (leading byte order marks removed, line endings converted to LF).

    If nothing changed, the text is the same object as the block.
    """
    held = b""  # a CR at the end of a block, whose LF may follow in the next
    start = True
    with opened(file) as stream:
        while block := stream.read(CHUNK):
            plain = held + block if held else block
            if start:
                plain = without_marks(plain)
                start = False
            held = b""
            if b"\r" in plain:
                if plain.endswith(b"\r"):
                    plain, held = plain[:-1], b"\r"
                plain = plain.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            yield block, plain
        if held:
            yield b"", b"\n"


def without_marks(data: bytes) -> bytes:
    """``data`` without the byte order marks at its start; some programs add a second one."""
    while data.startswith(codecs.BOM_UTF8):
        data = data[3:]
    return data
