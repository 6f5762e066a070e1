"""Text corpus: UTF-8 files, each a document."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tinyllm.data.corpus import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import look_at, read_text, require_errors_mode
from tinyllm.data.finding import Listing
from tinyllm.data.formats import BINARY, advice_for, counted
from tinyllm.errors import UserError


class TextCorpus(FileCorpus):
    """UTF-8 text files. In a folder, hidden files and files that are not text (compressed, binary, …) are skipped.

    Byte order marks are dropped, and the line endings CR LF and CR become LF.

    Args:
        path: a file, a folder (with its subfolders) or a glob.
        val_path: the same for a separate validation set. Then nothing is split off, and training files that are also in
            it are left out.
        val_fraction: fraction of the bytes that becomes validation, by document. If whole documents miss it by far, the
            tail of one document is cut off for validation; a single document is always cut.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, errors: str) -> None:
        super().__init__(path=path, val_path=val_path, val_fraction=val_fraction)
        self._errors = require_errors_mode(errors)

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        skipped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for file in listing.files:
            if listing.is_folder and (kind := look_at(file.path)):
                skipped[kind] += 1
                examples.setdefault(kind, file.path)
                continue
            if any(not chunk.isspace() for chunk in read_text(file.path, errors=self._errors)):
                return
        if skipped.total() == len(listing.files):
            [(commonest, _)] = skipped.most_common(1)
            hint = f"any UTF-8 file is accepted, whatever its name; the folder contains {counted(skipped)}"
            if commonest != BINARY:
                hint += f"; {advice_for(commonest, examples[commonest])}"
            raise UserError("the folder contains no text file", key=key, value=path, hint=hint)
        single, has_bytes = len(listing.files) == 1, any(file.stamp[0] for file in listing.files)
        if has_bytes:
            what = f"{'the file contains' if single else 'all files contain'} nothing but whitespace"
        else:
            what = "the file is empty" if single else "all files are empty"
        raise UserError(what, key=key, value=path, hint="there is no text to train on")

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        return documents_of(files, contents, self._errors)

    def settings(self) -> list[Any]:
        return [self._errors]


def documents_of(files: Sequence[str], contents: Contents, errors: str) -> Iterator[Document]:
    """Each nonempty file as a document."""
    for file in files:
        content = contents[file]
        if content.text_size:
            reader = partial(read_text, file, errors=errors)
            yield Document(content.digest, content.size, reader, content.text_digest or content.digest)
