"""UTF-8 text: a file, a folder or a glob. A file is a document."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.files import find_files, is_binary, read_head, read_text, require_errors_mode
from tinyllm.data.hashes import ContentHashes
from tinyllm.errors import UserError


class TextCorpus(Corpus):
    """UTF-8 text files. In a folder, binary files (a NUL near the start) and hidden ones are passed over.

    Args:
        path: a file, a folder (with everything below) or a glob.
        val_path: the same for validation; then nothing is split off, and training text that is also in it is left out.
        val_fraction: share that becomes validation, by document; of a single document the tail.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, errors: str) -> None:
        super().__init__(val_fraction=val_fraction)
        self._path = str(path)
        self._val_path = None if val_path is None else str(val_path)
        self._errors = require_errors_mode(errors)

    def check(self) -> None:
        for path, key in self._places():
            files, _ = self._files(path, key)
            if not any(_has_text(file, self._errors) for file in files):
                what = "the file is empty" if len(files) == 1 else "all files are empty"
                if len(files) == 1 and files[0].stat().st_size:
                    what = "the file has nothing but white space"
                raise UserError(what, key=key, value=path)

    def open(self, hashes: ContentHashes) -> Source:
        self.check()
        notes: list[str] = []
        sets: list[Callable[[], Iterator[Document]]] = []
        marks, size = [], 0
        found = [self._files(path, key) for path, key in self._places()]
        digests = hashes.of([file for files, _ in found for file in files])
        for files, skipped in found:
            if skipped:
                notes.append(f"{skipped:,} binary files in the folder are not text and were left out.")
            sets.append(partial(documents_of, files, digests, self._errors))
            marks.append([digests[file].hex() for file in files])
            size += sum(file.stat().st_size for file in files)
        return Source(
            fingerprint=fingerprint_of("text", marks, self._errors, self.val_fraction if len(sets) == 1 else None),
            documents=sets[0],
            validation=sets[1] if len(sets) > 1 else None,
            size=size,
            notes=notes,
        )

    def _places(self) -> list[tuple[str, str]]:
        places = [(self._path, "dataset.path")]
        return places if self._val_path is None else [*places, (self._val_path, "dataset.val_path")]

    def _files(self, path: str, key: str) -> tuple[list[Path], int]:
        """The text files of ``path``, and how many binary ones a folder holds besides."""
        files = find_files(path, key=key)
        if not Path(path).expanduser().is_dir():
            return files, 0
        texts = [file for file in files if not is_binary(file)]
        if not texts:
            raise UserError("the folder holds no text file", key=key, value=path)
        return texts, len(files) - len(texts)


def documents_of(files: Sequence[Path], digests: dict[Path, bytes], errors: str) -> Iterator[Document]:
    """Each file that is not empty as a document."""
    for file in files:
        size = file.stat().st_size
        if size:
            yield Document(digests[file], size, partial(read_text, file, errors=errors))


def _has_text(file: Path, errors: str) -> bool:
    """Whether the beginning of the file (1 MiB) has more than white space. Raises UserError if it cannot be read."""
    read_head(file, 1)
    return any(chunk.strip() for chunk in islice(read_text(file, errors=errors), 1))
