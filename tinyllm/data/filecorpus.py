"""What corpora have in common that are files named by ``dataset.path`` and, maybe, ``dataset.val_path``."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.hashes import ContentHashes

Digests = dict[Path, bytes]


class FileCorpus(Corpus):
    """Documents out of files.

    Args:
        path: a file, a folder or a glob.
        val_path: the same for validation; then nothing is split off, and training documents also in it
            are left out.
        val_fraction: share that becomes validation, by document.
    """

    rows = False

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float) -> None:
        super().__init__(val_fraction=val_fraction)
        self.places = [("dataset.path", str(path))]
        if val_path is not None:
            self.places.append(("dataset.val_path", str(val_path)))

    @abstractmethod
    def find(self, key: str, path: str) -> list[Path]:
        """The files of one place, at least one. Raises UserError, which names ``key``."""

    @abstractmethod
    def documents(self, files: Sequence[Path], digests: Digests) -> Iterator[Document]:
        """Reads the files, whose sha256 are in ``digests``."""

    def settings(self) -> list[Any]:
        """What decides the documents beside the files, as plain JSON types."""
        return []

    def notes(self) -> list[str]:
        """Sentences for the user about the choice of files."""
        return []

    def open(self, hashes: ContentHashes) -> Source:
        self.check()
        found = [self.find(key, path) for key, path in self.places]
        files = [file for some in found for file in some]
        digests = hashes.of(files)
        marks = [[digests[file].hex() for file in some] for some in found]
        sides: list[Callable[[], Iterator[Document]]] = [partial(self.documents, some, digests) for some in found]
        fraction = self.val_fraction if len(found) == 1 else None
        return Source(
            fingerprint=fingerprint_of(type(self).__name__, marks, self.settings(), fraction),
            documents=sides[0],
            validation=sides[1] if len(sides) > 1 else None,
            size=sum(file.stat().st_size for file in files),
            rows=self.rows,
            notes=self.notes(),
        )
