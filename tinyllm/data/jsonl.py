"""JSON lines corpus: one object per line, with the document in one of its fields."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tinyllm.data.compression import SUFFIXES
from tinyllm.data.corpus import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import NOT_UTF8, read_lines, require_errors_mode
from tinyllm.data.finding import Listing
from tinyllm.data.selection import text_documents
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json


class JsonlCorpus(FileCorpus):
    """Files with one JSON object per line, compressed or not. Blank lines and empty documents are skipped.

    Args:
        source: arguments of the base class. Of a folder, the ``.jsonl`` and ``.ndjson`` files are read, or the
            ``.json`` files if it has none of these.
        field: field that holds the text. ``doc.text`` means the field ``text`` of the object in ``doc``, unless a field
            is itself named ``doc.text``.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    suffixes = tuple(
        tuple(suffix + packed for packed in ("", *SUFFIXES) for suffix in group)
        for group in ((".jsonl", ".ndjson"), (".json",))
    )

    def __init__(self, *, field: str, errors: str, **source: Any) -> None:
        super().__init__(**source)
        self._field = str(field)
        self._errors = require_errors_mode(errors)

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        documents = text_documents(self._texts(file.path for file in listing.files))
        if all(chunk.isspace() for document in documents for chunk in document.chunks()):
            hint = f"text is read from the field {self._field}"
            raise UserError("it contains no text", key=key, value=path, hint=hint)

    def settings(self) -> list[Any]:
        return [self._field, self._errors]

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        return text_documents(self._texts(files))

    def _texts(self, files: Iterable[str]) -> Iterator[bytes]:
        """The nonempty documents as UTF-8: a string with a single emoji would take four bytes per character."""
        for file in files:
            for number, line in enumerate(read_lines(file), start=1):
                if data := self._text(line, file, number).encode():
                    del line
                    yield data

    def _text(self, line: bytes, file: str, number: int) -> str:
        place = f"{file}:{number}"
        try:
            decoded = line.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte 0x{line[error.start]:02x} (byte {error.start} of the line) is not UTF-8",
                file=place,
                hint=NOT_UTF8,
            ) from None
        if not decoded or decoded.isspace():
            return ""
        try:
            record = parse_json(decoded, finite=False)
        except ValueError as error:
            raise UserError("the line is not JSON", file=place, hint=_advice(decoded, file, number, error)) from None
        start = decoded[:64]
        del decoded  # frees one copy of a large document
        if not isinstance(record, dict):
            hint = _advice(start, file, number, "each line must be an object, {…}, with the text in one of its fields")
            raise UserError("the line is not a JSON object", file=place, hint=hint)
        text, fields = _look_up(record, self._field)
        if fields is not None:
            hint = f"its fields are {', '.join(fields[:20])}" if fields else "it has no fields"
            raise UserError("the line lacks the field", key="dataset.field", value=self._field, file=place, hint=hint)
        if not isinstance(text, str):
            raise UserError(
                "the field is not text",
                key="dataset.field",
                value=self._field,
                file=place,
                hint="it must be a string",
            )
        return self._without_surrogates(text, place).lstrip("\ufeff")

    def _without_surrogates(self, text: str, place: str) -> str:
        """``text`` without lone surrogates, which JSON escapes can produce."""
        try:
            text.isascii() or text.encode()  # much faster than examining each character
        except UnicodeEncodeError:
            if self._errors == "strict":
                raise UserError(
                    "the text has a lone surrogate, which is not a character",
                    file=place,
                    hint="correct the line, or read it with dataset.errors=replace",
                ) from None
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text


def _look_up(record: dict[str, Any], field: str) -> tuple[Any, list[str] | None]:
    """The value of a field, which may be nested, and None; or, if there is no such field, the fields of the record.

    A field whose own name contains the dots takes precedence.
    """
    if field in record:
        return record[field], None
    fields = sorted(record)
    parts = field.split(".")
    for count in range(len(parts) - 1, 0, -1):
        outer, inner = ".".join(parts[:count]), ".".join(parts[count:])
        if isinstance(record.get(outer), dict):
            value, below = _look_up(record[outer], inner)
            if below is None:
                return value, None
            fields += [f"{outer}.{name}" for name in below]
    return None, fields


def _advice(decoded: str, file: str, number: int, otherwise: object) -> str:
    """A hint for a line that is not an object; a first line with an open bracket suggests a single JSON document."""
    start = decoded.strip()
    if number == 1 and start.startswith("["):
        return f"the file seems to be a JSON array; convert it to one object per line: jq -c '.[]' {shlex.quote(file)}"
    if number == 1 and start == "{":
        return f"an object seems to span several lines; convert it to one per line: jq -c . {shlex.quote(file)}"
    return f"{otherwise}; write one object per line" if isinstance(otherwise, Exception) else str(otherwise)
