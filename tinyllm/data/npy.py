"""Corpus of token ids: .npy files of shape (num_sequences, seq_length)."""

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from tokenize import TokenError

import numpy as np

from tinyllm.data.corpus import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import read_head
from tinyllm.data.finding import Listing
from tinyllm.data.formats import NUMPY_ARCHIVE, RAW, advice_for, kind_of
from tinyllm.errors import UserError

MAGIC = b"\x93NUMPY"
SHAPE = "(num_sequences, seq_length)"
LARGEST = 2**32 - 2
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError),
    *(FloatingPointError, SyntaxError, TokenError),
)
"""Exceptions that NumPy raises for an invalid header, which it parses as a Python literal."""


class NpyCorpus(FileCorpus):
    """Rows of token ids; a row is a document, and training windows do not cross its end.

    Args:
        path: a ``.npy`` file of int32 or int64 with shape (num_sequences, seq_length), a folder of them or a glob.
        val_path: the same for a separate validation set. Then nothing is split off, and training rows that are also in
            it are left out.
        val_fraction: fraction of the rows that becomes validation; identical rows go to the same split.
    """

    content = "numbers"
    rows = True
    suffixes = ((".npy",),)

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float) -> None:
        super().__init__(path=path, val_path=val_path, val_fraction=val_fraction)

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        lengths = sorted({_rows(file.path).shape[1] for file in listing.files})
        if len(lengths) > 1:
            raise UserError(f"the arrays have rows of different lengths: {lengths}", key=key, value=path)

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        return _documents(files)


def _documents(files: Sequence[str]) -> Iterator[Document]:
    for file in files:
        for number, row in enumerate(_rows(file)):
            if row.min() < 0:
                raise UserError(f"row {number} contains the negative id {row.min()}", file=file, hint="ids start at 0")
            if row.max() > LARGEST:
                raise UserError(f"row {number} contains the id {row.max()}", file=file, hint="ids end at 2**32 - 2")
            data = np.ascontiguousarray(row, dtype=np.int64)
            digest = hashlib.sha256(data.tobytes()).digest()
            yield Document(digest, row.nbytes, partial(iter, (data,)), digest)


def _rows(file: str) -> np.ndarray:
    """The memory-mapped array of a file. Raises UserError if it does not contain rows of integers."""
    head = read_head(file, unpack=False)
    if not head.startswith(MAGIC):
        raise _no_array(head, file)
    try:
        with np.errstate(over="raise"):  # for a shape whose size overflows
            array = np.lib.format.open_memmap(file, mode="r")  # never unpickles
    except UNREADABLE as error:
        raise UserError(f"cannot read the array: {_reason(error)}", file=file, hint="save it again") from None
    if array.dtype not in (np.int32, np.int64):
        hint = "it must be int32 or int64: numpy.save(file, array.astype(numpy.int32))"
        raise UserError(f"the array has dtype {array.dtype}", file=file, hint=hint)
    if array.ndim != 2:
        hint = f"it must have two dimensions, {SHAPE}: array.reshape(-1, seq_length)"
        raise UserError(f"the array has shape {array.shape}", file=file, hint=hint)
    if array.shape[0] == 0:
        raise UserError("the array has no rows", file=file, hint=SHAPE)
    if array.shape[1] < 2:
        raise UserError(f"rows have length {array.shape[1]}", file=file, hint="prediction needs at least 2 ids")
    return array


def _no_array(head: bytes, file: str) -> UserError:
    kind = kind_of(head, file)
    if not head:
        return UserError("cannot read the array: the file is empty", file=file, hint="save it with numpy.save")
    if kind == RAW:
        return UserError(f"the file is {RAW}, not an .npy file", file=file, hint=advice_for(RAW, file))
    hint = "it has no NumPy header; numpy.save writes one"
    what = kind or "text"
    if kind == NUMPY_ARCHIVE:
        hint = f"save one array of it: numpy.save('ids.npy', numpy.load({shlex.quote(file)})[name])"
    return UserError(f"cannot read the array: the file is {what}", file=file, hint=hint)


def _reason(error: Exception) -> str:
    """Why NumPy refused the file."""
    said = str(error)
    if "Python objects" in said:
        return "it contains Python objects, not numbers"
    if "greater than file size" in said:
        return "the file is truncated; its header announces more data"
    return said or "the file is truncated"
