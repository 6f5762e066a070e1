"""Base of the corpora that are files: ``dataset.path`` and, optionally, ``dataset.val_path``."""

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
    """Documents from files.

    Args:
        path: a file, a folder or a glob.
        val_path: the same for a separate validation set. Then nothing is split off, and training documents that are
            also in it are left out.
        keywords: arguments of the base class.
    """

    rows = False
    suffixes: tuple[tuple[str, ...], ...] = ()
    """Groups of file extensions: a folder gives the files of the first group that matches; empty: all text files."""

    def __init__(self, *, path: str, val_path: str | None, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.places = [("dataset.path", str(path))]
        if val_path is not None:
            self.places.append(("dataset.val_path", str(val_path)))
        self._found: list[Listing] | None = None

    @abstractmethod
    def look(self, listing: Listing, *, key: str, path: str) -> None:
        """Check the files of one path quickly.

        Raises:
            UserError: they cannot be read or are empty.
        """

    @abstractmethod
    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        """Read the documents of the files, whose hashes are in ``contents``."""

    def settings(self) -> list[Any]:
        """Settings that the documents depend on besides the files, as JSON values."""
        return []

    def check(self) -> None:
        self._found = self._find()

    def open(self, hashes: ContentHashes) -> Source:
        listings, self._found = self._found or self._find(), None  # reuse the walk of check(), which takes a while
        contents = hashes.of([file for listing in listings for file in listing.files])
        chosen: list[list[str]] = []
        size, left_out = 0, Counter[str]()
        for (key, path), listing in zip(self.places, listings, strict=True):
            files = listing.files
            left_out += listing.left_out
            if listing.is_folder and not self.suffixes:
                files = [file for file in files if not contents[file.path].kind]
                left_out += Counter(kind for file in listing.files if (kind := contents[file.path].kind))
            if not files:  # check() found some
                raise UserError(
                    "the folder contains no text file", key=key, value=path, hint="its contents have just changed"
                )
            chosen.append([file.path for file in files])
            size += sum(file.stamp[0] for file in files)
        digests = [[contents[path].digest.hex() for path in paths] for paths in chosen]
        sides: list[Callable[[], Iterator[Document]]] = [partial(self.documents, paths, contents) for paths in chosen]
        fraction = self.val_fraction if len(sides) == 1 else None
        notes = _notes(left_out)
        settings = [*self.settings(), *self.selection.settings()]
        places: dict[str, Any] = {key.removeprefix("dataset."): path for key, path in self.places}
        return Source(
            fingerprint=fingerprint_of(type(self).__name__, digests, settings, fraction),
            documents=self.selection.of(sides[0], count=self.count, notes=notes),
            validation=self.selection.text_of(sides[1]) if len(sides) > 1 else None,
            size=size,
            rows=self.rows,
            notes=notes,
            **places,
        )

    def _find(self) -> list[Listing]:
        """The files of each path, checked."""
        listings = []
        for key, path in self.places:
            listing = find_files(path, key=key, suffixes=self.suffixes)
            self.look(listing, key=key, path=path)
            listings.append(listing)
        return listings


def _notes(left_out: Counter[str]) -> list[str]:
    """A sentence about skipped entries, if there are any."""
    if not left_out:
        return []
    count = left_out.total()
    what = (
        "1 entry of the folder is not a text file and was"
        if count == 1
        else (f"{count:,} entries of the folder are not text files and were")
    )
    return [f"{what} skipped: {counted(left_out)}."]
