"""Arrays of numbers: .npy files of shape (num_sequences, seq_length)."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.data.filecorpus import Digests, FileCorpus
from tinyllm.data.files import find_files
from tinyllm.errors import UserError


class NpyCorpus(FileCorpus):
    """Rows of numbers; a row is a document, and no training window reaches over its end.

    Args:
        path: a ``.npy`` file of int32 or int64 with shape (num_sequences, seq_length), a folder of them or a
            glob.
        val_path: the same for validation; then nothing is split off, and training rows that are also in it
            are left out.
        val_fraction: share of the rows that becomes validation; equal rows go to the same side.
    """

    content = "numbers"
    rows = True

    def check(self) -> None:
        for key, path in self.places:
            lengths = sorted({_rows(file).shape[1] for file in self.find(key, path)})
            if len(lengths) > 1:
                raise UserError(f"the arrays have rows of different lengths: {lengths}", key=key, value=path)

    def find(self, key: str, path: str) -> list[Path]:
        return find_files(path, key=key, suffixes=(".npy",))

    def documents(self, files: Sequence[Path], digests: Digests) -> Iterator[Document]:
        return _documents(files)


def _documents(files: Sequence[Path]) -> Iterator[Document]:
    for file in files:
        for number, row in enumerate(_rows(file)):
            if row.min() < 0:
                raise UserError(f"row {number} has the negative number {row.min()}", file=file, hint="ids start at 0")
            if row.max() >= 2**32 - 1:
                raise UserError(f"row {number} has the number {row.max()}", file=file, hint="ids end at 2**32 - 2")
            data = np.ascontiguousarray(row, dtype=np.int64)
            yield Document(hashlib.sha256(data.tobytes()).digest(), row.nbytes, partial(iter, (data,)))


def _rows(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, KeyError) as error:
        raise UserError(f"cannot read the array: {error or 'the file is cut off'}", file=file) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError("this is an archive, not a single array", file=file, hint="save it with numpy.save")
    if array.dtype not in (np.int32, np.int64):
        raise UserError(f"the array holds {array.dtype}", file=file, hint="it must be int32 or int64")
    if array.ndim != 2:
        raise UserError(f"the array has {array.ndim} dimensions", file=file, hint="(num_sequences, seq_length)")
    if array.shape[0] == 0:
        raise UserError("the array has no rows", file=file)
    if array.shape[1] < 2:
        raise UserError(f"rows of {array.shape[1]} numbers", file=file, hint="prediction needs at least 2")
    return array
