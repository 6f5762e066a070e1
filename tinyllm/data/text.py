"""Text corpus: UTF-8 files, each a document."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from tinyllm.data.compression import is_compressed
from tinyllm.data.corpus import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import look_at, read_text, require_errors_mode
from tinyllm.data.finding import Listing
from tinyllm.data.formats import BINARY, advice_for, counted
from tinyllm.data.selection import text_documents
from tinyllm.data.wikitext_cleaner import articles, require_title
from tinyllm.errors import UserError


class TextCorpus(FileCorpus):
    """UTF-8 text files, also compressed with gzip, bzip2, xz or Zstandard. In a folder, hidden files and files that are
    not text (images, archives, …) are skipped.

    Byte order marks are dropped, and the line endings CR LF and CR become LF.

    Each file is a document. With ``clean``, each article of WikiText in the files is one.

    Args:
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
        source: arguments of the base class.
    """

    def __init__(self, *, errors: str, **source: Any) -> None:
        super().__init__(**source)
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
                if self.selection.clean:
                    require_title(_lines(read_text(file.path, errors=self._errors)), file.path)
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
        documents = documents_of(files, contents, self._errors)
        if not self.selection.clean:
            return documents
        found = (article for document in documents for article in articles(_lines(document.chunks())))
        return text_documents(article.encode() for article in found)

    def settings(self) -> list[Any]:
        return [self._errors]


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of a text with their ends."""
    held = ""
    for chunk in chunks:
        *lines, held = f"{held}{chunk}".split("\n")
        yield from (f"{line}\n" for line in lines)
    if held:
        yield held


def documents_of(files: Sequence[str], contents: Contents, errors: str) -> Iterator[Document]:
    """Each nonempty file as a document."""
    for file in files:
        content = contents[file]
        if content.text_size:
            reader = partial(read_text, file, errors=errors)
            packed = content.text_digest is not None and is_compressed(file)
            size = content.text_size if packed else content.size
            yield Document(content.digest, size, reader, content.text_digest or content.digest)
