"""JSON lines: one object per line, one of its fields is the document."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.files import find_files, require_errors_mode
from tinyllm.data.hashes import ContentHashes
from tinyllm.errors import UserError

SUFFIXES = (".jsonl", ".ndjson")


class JsonlCorpus(Corpus):
    """Files with a JSON object per line. Blank lines and empty texts are passed over.

    Args:
        path: a file, a folder (its ``.jsonl`` and ``.ndjson`` files, with everything below) or a glob.
        val_path: the same for validation; then nothing is split off, and training text that is also in it is left out.
        val_fraction: share that becomes validation, by document; of a single document the tail.
        field: name of the field that holds the text.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, field: str, errors: str) -> None:
        super().__init__(val_fraction=val_fraction)
        self._path = str(path)
        self._val_path = None if val_path is None else str(val_path)
        self._field = str(field)
        self._errors = require_errors_mode(errors)

    def check(self) -> None:
        for path, key in self._places():
            files = find_files(path, key=key, suffixes=SUFFIXES)
            if next(self._documents(files), None) is None:
                raise UserError("there is no text in it", key=key, value=path)

    def open(self, hashes: ContentHashes) -> Source:
        found = [find_files(path, key=key, suffixes=SUFFIXES) for path, key in self._places()]
        files = [file for some in found for file in some]
        digests = hashes.of(files)
        sets: list[Callable[[], Iterator[Document]]] = [partial(self._documents, some) for some in found]
        marks = [[digests[file].hex() for file in some] for some in found]
        fraction = self.val_fraction if len(sets) == 1 else None
        return Source(
            fingerprint=fingerprint_of("jsonl", marks, self._field, self._errors, fraction),
            documents=sets[0],
            validation=sets[1] if len(sets) > 1 else None,
            size=sum(file.stat().st_size for file in files),
        )

    def _places(self) -> list[tuple[str, str]]:
        places = [(self._path, "dataset.path")]
        return places if self._val_path is None else [*places, (self._val_path, "dataset.val_path")]

    def _documents(self, files: Sequence[Path]) -> Iterator[Document]:
        for file in files:
            try:
                with open(file, "rb") as stream:
                    for number, line in enumerate(stream, start=1):
                        text = self._text(line, file, number)
                        if text:
                            data = text.encode()
                            yield Document(hashlib.sha256(data).digest(), len(data), partial(iter, (text,)))
            except OSError as error:
                raise UserError(f"cannot read the file: {error.strerror}", file=file) from None

    def _text(self, line: bytes, file: Path, number: int) -> str:
        place = f"{file}:{number}"
        try:
            decoded = line.decode("utf-8-sig" if number == 1 else "utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte 0x{line[error.start]:02x} (byte {error.start} of the line) is not UTF-8",
                file=place,
                hint="convert the file to UTF-8, or read it with dataset.errors=replace",
            ) from None
        if not decoded.strip():
            return ""
        try:
            record = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the line is not JSON: {error}", file=place) from None
        if not isinstance(record, dict):
            raise UserError("the line is not a JSON object", file=place)
        if self._field not in record:
            has = f"the line has {', '.join(sorted(record)) or 'no field'}"
            raise UserError(f"a line without the field ({place})", key="dataset.field", value=self._field, hint=has)
        text = record[self._field]
        if not isinstance(text, str):
            raise UserError(
                f"the field is not text ({place})", key="dataset.field", value=self._field, hint="it must be a string"
            )
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # an escape of half a character
            if self._errors == "strict":
                raise UserError("the text has half a surrogate pair, which is not a character", file=place)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text
