"""JSON lines: one object per line, one of its fields is the document."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.data.corpus import Document
from tinyllm.data.filecorpus import Digests, FileCorpus
from tinyllm.data.files import find_files, read_lines, require_errors_mode
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json


class JsonlCorpus(FileCorpus):
    """Files with a JSON object per line. Blank lines and empty texts are passed over.

    Args:
        path: a file, a folder (its ``.jsonl`` and ``.ndjson`` files, with everything below) or a glob.
        val_path: the same for validation; then nothing is split off, and training text that is also in it is
            left out.
        val_fraction: share that becomes validation, by document; of a single document the tail.
        field: name of the field that holds the text.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, field: str, errors: str) -> None:
        super().__init__(path=path, val_path=val_path, val_fraction=val_fraction)
        self._field = str(field)
        self._errors = require_errors_mode(errors)

    def check(self) -> None:
        for key, path in self.places:
            if next(self.documents(self.find(key, path), {}), None) is None:
                raise UserError("there is no text in it", key=key, value=path)

    def find(self, key: str, path: str) -> list[Path]:
        return find_files(path, key=key, suffixes=(".jsonl", ".ndjson"))

    def settings(self) -> list[Any]:
        return [self._field, self._errors]

    def documents(self, files: Sequence[Path], digests: Digests) -> Iterator[Document]:
        for file in files:
            for number, line in enumerate(read_lines(file), start=1):
                text = self._text(line, file, number)
                if text:
                    data = text.encode()
                    yield Document(hashlib.sha256(data).digest(), len(data), partial(iter, (text,)))

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
            record = parse_json(decoded, finite=False)
        except ValueError as error:
            raise UserError("the line is not JSON", file=place, hint=f"{error}; one object a line") from None
        if not isinstance(record, dict):
            hint = "each line is an object, {…}, with the text in one of its fields"
            raise UserError("the line is not a JSON object", file=place, hint=hint)
        if self._field not in record:
            has = f"the line has {', '.join(sorted(record)) or 'no field'}"
            raise UserError("a line without the field", key="dataset.field", value=self._field, file=place, hint=has)
        text = record[self._field]
        if not isinstance(text, str):
            raise UserError(
                "the field is not text",
                key="dataset.field",
                value=self._field,
                file=place,
                hint="it must be a string",
            )
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # an escape of half a character
            if self._errors == "strict":
                raise UserError("the text has half a surrogate pair, which is not a character", file=place)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text
