"""What corpora have in common that are files named by ``dataset.path`` and, maybe, ``dataset.val_path``."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tinyllm.data.content_hashes import Content, ContentHashes
from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.finding import Listing, find_files
from tinyllm.data.formats import counted
from tinyllm.errors import UserError

Contents = dict[str, Content]


class FileCorpus(Corpus):
    """Documents out of files.

    Args:
        path: a file, a folder or a glob.
        val_path: the same for validation; then nothing is split off, and training documents also in it
            are left out.
        val_fraction: share that becomes validation, by document.
    """

    rows = False
    suffixes: tuple[tuple[str, ...], ...] = ()
    """Of a folder only files that end like this: those of the first group of which there is any; empty: text."""

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float) -> None:
        super().__init__(val_fraction=val_fraction)
        self.places = [("dataset.path", str(path))]
        if val_path is not None:
            self.places.append(("dataset.val_path", str(val_path)))
        self._found: list[Listing] | None = None

    @abstractmethod
    def look(self, listing: Listing, *, key: str, path: str) -> None:
        """Refuses quickly (UserError) what cannot be read of the files of one place."""

    @abstractmethod
    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        """Reads the files, whose hashes are in ``contents``."""

    def settings(self) -> list[Any]:
        """What decides the documents beside the files, as plain JSON types."""
        return []

    def check(self) -> None:
        self._found = self._find()

    def open(self, hashes: ContentHashes) -> Source:
        listings, self._found = self._found or self._find(), None  # a walk over many files takes a while
        contents = hashes.of([file for listing in listings for file in listing.files])
        chosen: list[list[str]] = []
        size, left_out = 0, Counter[str]()
        for (key, path), listing in zip(self.places, listings, strict=True):
            kept = listing.files
            left_out += listing.left_out
            if listing.is_folder and not self.suffixes:
                kept = [file for file in kept if not contents[file.path].kind]
                left_out += Counter(kind for file in listing.files if (kind := contents[file.path].kind))
            if not kept:  # it was not so a moment ago
                raise UserError("the folder holds no text file", key=key, value=path, hint="it has just changed")
            chosen.append([file.path for file in kept])
            size += sum(file.stamp[0] for file in kept)
        marks = [[contents[file].digest.hex() for file in files] for files in chosen]
        sides: list[Callable[[], Iterator[Document]]] = [partial(self.documents, files, contents) for files in chosen]
        fraction = self.val_fraction if len(sides) == 1 else None
        return Source(
            fingerprint=fingerprint_of(type(self).__name__, marks, self.settings(), fraction),
            documents=sides[0],
            validation=sides[1] if len(sides) > 1 else None,
            size=size,
            rows=self.rows,
            notes=_notes(left_out),
            **{key.removeprefix("dataset."): path for key, path in self.places},
        )

    def _find(self) -> list[Listing]:
        """The files of each place, looked at."""
        listings = []
        for key, path in self.places:
            listing = find_files(path, key=key, suffixes=self.suffixes)
            self.look(listing, key=key, path=path)
            listings.append(listing)
        return listings


def _notes(left_out: Counter[str]) -> list[str]:
    """A sentence on what was passed over, if anything was."""
    if not left_out:
        return []
    count = left_out.total()
    return [f"{count:,} entries of the folder are not text files and were left out: {counted(left_out)}."]
