"""TokenWriter: the ids of one split, written so that a killed preparation goes on where its ids were last durable."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.files import create, open_append, open_update, remove

BLOCK_BYTES = 2**22
"""Bytes of ids that have a sha256 of their own in meta.json."""
EXCEPTIONS = ".exceptions"
"""Ending of the file that holds the exceptions of a split until they are packed."""
CHUNK = 2**20


class DamagedIdsError(Exception):
    """The files do not begin with what was durable; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Durable:
    """How far the files of a split are on disk.

    Attributes:
        tokens: number of ids.
        blocks: sha256 (hex) of each full block.
        tail: sha256 (hex) of the ids after the last full block.
        exceptions: number of exceptions.
        exceptions_sha256: sha256 (hex) of their file up to there.
    """

    tokens: int = 0
    blocks: tuple[str, ...] = ()
    tail: str = hashlib.sha256().hexdigest()
    exceptions: int = 0
    exceptions_sha256: str = hashlib.sha256().hexdigest()


class TokenWriter:
    """Writes and hashes the ids of one split.

    Args:
        path: file of the ids.
        tokenizer: gives the dtype of the ids and their usual bytes.
        after: go on after these ids, which an earlier process wrote; what follows them in the files is cut off.

    Raises:
        DamagedIdsError: the files do not begin with the ids of ``after``.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, after: Durable | None = None) -> None:
        after = after or Durable()
        self._path, self._exceptions_path = path, path.with_suffix(EXCEPTIONS)
        self._vocab_size = tokenizer.vocab_size
        self._usual = tokenizer.token_bytes()
        self._dtype = dtype_for(tokenizer.vocab_size)
        self.n_tokens, self._n_exceptions = after.tokens, after.exceptions
        self._blocks = list(after.blocks)
        self._in_block = after.tokens * np.dtype(self._dtype).itemsize - len(after.blocks) * BLOCK_BYTES
        self._block = _verified_ids(path, after, self._in_block)
        self._exceptions_hash = _verified_exceptions(self._exceptions_path, after)
        self._stream = open_append(path) if after.tokens else create(path)
        self._exceptions = open_append(self._exceptions_path) if after.exceptions else None

    def write(self, ids: np.ndarray, lengths: np.ndarray | None) -> None:
        """Append ids; ``lengths`` are their UTF-8 bytes, None: those in the tokenizer's table."""
        # Only a bug can cause this; unchecked, the id would silently wrap around.
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise RuntimeError(f"the tokenizer gave id {ids.max()} with a vocabulary of {self._vocab_size}")
        if lengths is not None:
            odd = np.flatnonzero(lengths != self._usual[ids])
            self._append_exceptions(np.stack([odd + self.n_tokens, lengths[odd]], axis=1).astype(np.int64))
        self.n_tokens += len(ids)
        data = memoryview(ids.astype(self._dtype).tobytes())
        self._stream.write(data)
        while data:
            part = data[: BLOCK_BYTES - self._in_block]
            self._block.update(part)
            self._in_block += len(part)
            if self._in_block == BLOCK_BYTES:
                self._end_block()
            data = data[len(part) :]

    def commit(self) -> Durable:
        """Make everything written so far durable."""
        for stream in (self._stream, self._exceptions):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())
        return Durable(
            tokens=self.n_tokens,
            blocks=tuple(self._blocks),
            tail=self._block.hexdigest(),
            exceptions=self._n_exceptions,
            exceptions_sha256=self._exceptions_hash.hexdigest(),
        )

    def finish(self) -> tuple[dict[str, Any], np.ndarray]:
        """Make the file durable; returns its entry in meta.json and its exceptions, (2, n)."""
        if self._in_block:
            self._end_block()
        self.commit()
        entry = {
            "dtype": self._dtype,
            "tokens": self.n_tokens,
            "sha256": fingerprint_of_blocks(self._blocks),
            "blocks": self._blocks,
        }
        return entry, read_exceptions(self._exceptions_path, self._n_exceptions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if self._exceptions is not None:
            self._exceptions.close()

    def _end_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
        self._block, self._in_block = hashlib.sha256(), 0

    def _append_exceptions(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        if self._exceptions is None:
            self._exceptions = create(self._exceptions_path)
        data = rows.tobytes()
        self._exceptions.write(data)
        self._exceptions_hash.update(data)
        self._n_exceptions += len(rows)


def dtype_for(vocab_size: int) -> str:
    """The smallest unsigned type that holds ids below ``vocab_size``."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def fingerprint_of_blocks(blocks: list[str]) -> str:
    """sha256 (hex) of the hashes of the blocks."""
    return hashlib.sha256("".join(blocks).encode()).hexdigest()


def read_exceptions(path: Path, count: int) -> np.ndarray:
    """The first ``count`` exceptions of a file of them, (2, count)."""
    if not count:
        return np.zeros((2, 0), dtype=np.int64)
    return np.ascontiguousarray(np.fromfile(path, dtype=np.int64, count=2 * count).reshape(count, 2).T)


def _verified_ids(path: Path, after: Durable, tail: int) -> Any:
    """The running hash of the block that ``after`` ends in; the file is cut off there.

    Args:
        tail: bytes after the last full block.
    """
    if not after.tokens:
        remove(path)
        return hashlib.sha256()
    with _opened(path) as stream:
        for expected in after.blocks:
            _require(hashlib.sha256(stream.read(BLOCK_BYTES)).hexdigest() == expected, path)
        block = stream.read(tail)
        digest = hashlib.sha256(block)
        _require(len(block) == tail and digest.hexdigest() == after.tail, path)
        os.truncate(stream.fileno(), len(after.blocks) * BLOCK_BYTES + tail)
    return digest


def _verified_exceptions(path: Path, after: Durable) -> Any:
    """The running hash of the exceptions; the file is cut off after them."""
    if not after.exceptions:
        remove(path)
        return hashlib.sha256()
    digest, left = hashlib.sha256(), 16 * after.exceptions
    with _opened(path) as stream:
        while left and (chunk := stream.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
        _require(not left and digest.hexdigest() == after.exceptions_sha256, path)
        os.truncate(stream.fileno(), 16 * after.exceptions)
    return digest


def _opened(path: Path) -> BinaryIO:
    try:
        return open_update(path)
    except OSError as error:
        raise DamagedIdsError(f"{path.name}: {error.strerror}") from error


def _require(condition: bool, path: Path) -> None:
    if not condition:
        raise DamagedIdsError(f"{path.name} is not what was written")
