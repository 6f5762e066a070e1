"""Arrays of numbers: .npy files of shape (num_sequences, seq_length)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.files import find_files
from tinyllm.data.hashes import ContentHashes
from tinyllm.errors import UserError

SUFFIXES = (".npy",)


class NpyCorpus(Corpus):
    """Rows of numbers; a row is a document, and no training window reaches over its end.

    Args:
        path: a ``.npy`` file of int32 or int64 with shape (num_sequences, seq_length), a folder of them or a glob.
        val_path: the same for validation; then nothing is split off, and training rows that are also in it are left out.
        val_fraction: share of the rows that becomes validation; equal rows go to the same side.
    """

    content = "numbers"

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float) -> None:
        super().__init__(val_fraction=val_fraction)
        self._path = str(path)
        self._val_path = None if val_path is None else str(val_path)

    def check(self) -> None:
        for path, key in self._places():
            arrays = [_rows(file) for file in find_files(path, key=key, suffixes=SUFFIXES)]
            lengths = sorted({array.shape[1] for array in arrays})
            if len(lengths) > 1:
                raise UserError(f"the arrays have rows of different lengths: {lengths}", key=key, value=path)

    def open(self, hashes: ContentHashes) -> Source:
        self.check()
        found = [find_files(path, key=key, suffixes=SUFFIXES) for path, key in self._places()]
        files = [file for some in found for file in some]
        digests = hashes.of(files)
        sets: list[Callable[[], Iterator[Document]]] = [partial(_documents, some) for some in found]
        marks = [[digests[file].hex() for file in some] for some in found]
        fraction = self.val_fraction if len(sets) == 1 else None
        return Source(
            fingerprint=fingerprint_of("npy", marks, fraction),
            documents=sets[0],
            validation=sets[1] if len(sets) > 1 else None,
            size=sum(file.stat().st_size for file in files),
            rows=True,
        )

    def _places(self) -> list[tuple[str, str]]:
        places = [(self._path, "dataset.path")]
        return places if self._val_path is None else [*places, (self._val_path, "dataset.val_path")]


def _documents(files: Sequence[Path]) -> Iterator[Document]:
    for file in files:
        for number, row in enumerate(_rows(file)):
            if row.min() < 0:
                raise UserError(f"row {number} has the negative number {row.min()}", file=file, hint="ids start at 0")
            if row.max() >= 2**32 - 1:
                raise UserError(f"row {number} has the number {row.max()}", file=file, hint="ids end at 2**32 - 2")
            data = np.ascontiguousarray(row, dtype=np.int64)
            yield Document(hashlib.sha256(data).digest(), row.nbytes, partial(iter, (data,)))


def _rows(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, KeyError) as error:
        raise UserError(f"cannot read the array: {error or 'the file is cut off'}", file=file) from None
    if not isinstance(array, np.ndarray):
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
