"""sha256 of files, remembered as long as the files are untouched."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.utils.files import read_json, write_bytes

Stamp = list[int]
LARGEST_MEMO = 512 << 20
"""Bytes: a corpus may have a million files."""
SETTLED_NS = 2_000_000_000  # a file changed this shortly before it was hashed may change again within one clock tick


def stamp(path: Path) -> Stamp:
    """What changes when somebody writes to the file: size, both times, inode. ctime cannot be set back by hand."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class ContentHashes:
    """Hashes of the files of corpora.

    Args:
        folder: where they are remembered, one file per corpus; need not exist, and need not be writable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Path, Stamp] = {}

    def of(self, files: Sequence[Path]) -> dict[Path, bytes]:
        """sha256 of each file. A file whose stamp is the remembered one is not read.

        Raises:
            UserError: a file cannot be read.
        """
        names = [os.path.abspath(file) for file in files]
        memo_file = (
            self._folder
            / f"{hashlib.sha256(chr(0).join(names).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
        )
        memo = _read(memo_file)
        hashes: dict[Path, bytes] = {}
        new: dict[str, list[object]] = {}
        for file, name in zip(files, names, strict=True):
            try:
                now = stamp(file)
                known = memo.get(name)
                if known is not None and known[0] == now and known[2]:
                    new[name] = known
                else:
                    settled = time.time_ns() - max(now[1], now[2]) > SETTLED_NS
                    new[name] = [now, _sha256(file), settled]
            except OSError as error:
                raise UserError(f"cannot read the file: {error.strerror}", file=file) from None
            self._stamps[file] = now
            hashes[file] = bytes.fromhex(str(new[name][1]))
        if new != memo:
            with suppress(UserError):  # only a memory: without it the next start reads the files again
                write_bytes(memo_file, json.dumps(new).encode())
        return hashes

    def require_unchanged(self) -> None:
        """Raises UserError if a file that ``of`` looked at is not the same any more."""
        for file, then in self._stamps.items():
            try:
                now = stamp(file)
            except OSError:
                now = []
            if now != then:
                raise UserError("the file changed while it was being read", file=file, hint="start again")


def _read(file: Path) -> dict[str, list]:
    try:
        memo: dict[str, list] = read_json(file, largest=LARGEST_MEMO)
    except UserError:
        return {}
    sound = all(isinstance(entry, list) and len(entry) == 3 for entry in memo.values())
    return memo if sound else {}


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
