"""UTF-8 text: a file, a folder or a glob. A file is a document."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tinyllm.data.corpus import Document
from tinyllm.data.filecorpus import Digests, FileCorpus
from tinyllm.data.files import find_files, is_binary, read_text, require_errors_mode
from tinyllm.errors import UserError


class TextCorpus(FileCorpus):
    """UTF-8 text files. In a folder, binary files (a NUL near the start) and hidden ones are passed over.

    A byte order mark is dropped, and the line ends CR LF and CR become LF.

    Args:
        path: a file, a folder (with everything below) or a glob.
        val_path: the same for validation; then nothing is split off, and training files that are also in it
            are left out.
        val_fraction: share that becomes validation, by document; of a single document the tail.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, errors: str) -> None:
        super().__init__(path=path, val_path=val_path, val_fraction=val_fraction)
        self._errors = require_errors_mode(errors)

    def check(self) -> None:
        for key, path in self.places:
            files = self.find(key, path)
            if not any(_has_text(file, self._errors) for file in files):
                what = "the file is" if len(files) == 1 else "all files are"
                kind = "nothing but white space" if any(file.stat().st_size for file in files) else "empty"
                raise UserError(f"{what} {kind}", key=key, value=path, hint="there is no text to learn from")

    def find(self, key: str, path: str) -> list[Path]:
        files = find_files(path, key=key)
        texts = files if not Path(path).expanduser().is_dir() else [f for f in files if not is_binary(f)]
        if not texts:
            hint = "UTF-8 files of any name; hidden and binary ones do not count"
            raise UserError("the folder holds no text file", key=key, value=path, hint=hint)
        return texts

    def documents(self, files: Sequence[Path], digests: Digests) -> Iterator[Document]:
        return documents_of(files, digests, self._errors)

    def settings(self) -> list[Any]:
        return [self._errors]

    def notes(self) -> list[str]:
        left_out = sum(len(find_files(path, key=key)) - len(self.find(key, path)) for key, path in self.places)
        return [f"{left_out:,} files in the folder are not text and were left out."] if left_out else []


def documents_of(files: Sequence[Path], digests: Digests, errors: str) -> Iterator[Document]:
    """Each file that is not empty as a document."""
    for file in files:
        size = file.stat().st_size
        if size:
            yield Document(digests[file], size, partial(read_text, file, errors=errors))


def _has_text(file: Path, errors: str) -> bool:
    """Whether the first MiB has more than white space. Raises UserError if it cannot be read."""
    return any(chunk.strip() for chunk in islice(read_text(file, errors=errors), 1))
