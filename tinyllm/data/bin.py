"""Corpus of token ids that another program wrote: nanoGPT's ``.bin`` files, and shards in the format of llm.c."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyllm.data.document import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import read_head
from tinyllm.data.finding import Listing
from tinyllm.data.formats import BINARY, RAW, advice_for, kind_of
from tinyllm.errors import UserError

HEADER = 256  # int32 numbers of llm.c's header: magic, version, number of ids, zeros
SHARDS: dict[tuple[int, int], np.dtype[Any]] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
"""Magic number and version of llm.c's shards, and the type of their ids (llm.c, dev/data/data_common.py)."""
HEADERLESS: np.dtype[Any] = np.dtype("<u2")
BLOCK = 2**20  # ids per chunk


class BinCorpus(FileCorpus):
    """Ids in ``.bin`` files: uint16 without a header (nanoGPT), or llm.c's shards of uint16 or uint32.

    With ``tokenizer=pretrained``, the data count as text that this tokenizer has encoded, with bits per byte and
    samples; with ``tokenizer=ids`` they are numbers.

    Args:
        eot_id: id that separates documents; it stays in the data. None: each file is one document.
        files: arguments of the base class.
    """

    content = "numbers"
    accepts_ready_ids = True
    suffixes = ((".bin",),)

    def __init__(
        self,
        *,
        eot_id: int | None,
        path: str,
        val_path: str | None,
        val_fraction: float,
        packing: str = "concat",
        dedup: str | bool = False,
        max_documents: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(
            path=path,
            val_path=val_path,
            val_fraction=val_fraction,
            packing=packing,
            dedup=dedup,
            max_documents=max_documents,
            max_tokens=max_tokens,
        )
        if eot_id is not None and eot_id < 0:
            raise UserError("not an id", key="dataset.eot_id", value=eot_id, hint="at least 0; null if there is none")
        self._eot_id = eot_id

    @property
    def eot_id(self) -> int | None:
        return self._eot_id

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        for file in listing.files:
            layout_of(file.path)

    def settings(self) -> list[Any]:
        return [self._eot_id]

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        for file in files:
            ids = layout_of(file).ids(file)
            for start, stop in _bounds(ids, self._eot_id):
                chunks = partial(_chunks, ids, start, stop)
                digest = hashlib.sha256()
                for chunk in chunks():
                    digest.update(chunk.astype("<u4").tobytes())  # the same ids are equal in either type
                yield Document(digest.digest(), (stop - start) * ids.itemsize, chunks, digest.digest())


@dataclass(frozen=True)
class Layout:
    """Where the ids of a file are.

    Attributes:
        dtype: their type.
        offset: bytes before the first.
        count: how many there are.
    """

    dtype: np.dtype
    offset: int
    count: int

    def ids(self, file: str) -> np.ndarray:
        """The ids of the file, memory-mapped."""
        return np.asarray(np.memmap(file, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.count,)))


def layout_of(file: str) -> Layout:
    """The layout of a ``.bin`` file.

    Raises:
        UserError: it cannot be read, has a header of an unknown kind, or a size that does not fit.
    """
    head, size = read_head(file, unpack=False), os.path.getsize(file)
    if not size:
        raise UserError("the file is empty", file=file, hint="there are no ids to train on")
    kind = kind_of(head, file)
    if kind not in ("", RAW, BINARY):
        raise UserError(f"the file is {kind}, not raw ids", file=file, hint=advice_for(kind, file))
    numbers = np.frombuffer(head[: 4 * HEADER], dtype="<i4") if len(head) >= 4 * HEADER else np.zeros(0, dtype="<i4")
    if not len(numbers) or numbers[3:].any() or not 0 < numbers[1] < 1000:
        if size % HEADERLESS.itemsize:
            hint = "a file without a header holds uint16 numbers; it was cut off, or is something else"
            raise UserError(f"{size:,} bytes are not a whole number of ids", file=file, hint=hint)
        return Layout(HEADERLESS, 0, size // HEADERLESS.itemsize)
    magic, version, count = (int(number) for number in numbers[:3])
    dtype = SHARDS.get((magic, version))
    if dtype is None:
        known = ", ".join(f"{magic} (version {version}, {dtype.name})" for (magic, version), dtype in SHARDS.items())
        what = f"unknown magic number {magic} with version {version}"
        raise UserError(what, file=file, hint=f"known: {known}")
    if size != 4 * HEADER + count * dtype.itemsize:
        hint = f"with {count:,} ids of {dtype.name} it would be {4 * HEADER + count * dtype.itemsize:,}; copy it again"
        raise UserError(f"the size of the file is {size:,} bytes", file=file, hint=hint)
    if not count:
        raise UserError("the shard has no ids", file=file, hint="there is nothing to train on")
    return Layout(dtype, 4 * HEADER, count)


def _bounds(ids: np.ndarray, eot_id: int | None) -> Iterator[tuple[int, int]]:
    """Start and end of each document. The separator belongs to the document before it, as nanoGPT writes it, or to the
    one after it if the file begins with one, as llm.c writes it."""
    start = 0
    if eot_id is not None:
        leads = int(ids[0]) == eot_id
        for first in range(0, len(ids), BLOCK):
            for place in np.flatnonzero(ids[first : first + BLOCK] == eot_id) + first:
                end = int(place) + (not leads)
                if end > start:
                    yield start, end
                    start = end
    if start < len(ids):
        yield start, len(ids)


def _chunks(ids: np.ndarray, start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start, stop, BLOCK):
        yield ids[first : min(first + BLOCK, stop)].astype(np.int64)
