"""JSON lines: one object per line, one of its fields is the document."""

import codecs
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from tinyllm.data.corpus import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import CHUNK, NOT_UTF8, read_lines, require_errors_mode
from tinyllm.data.finding import Listing
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json


class JsonlCorpus(FileCorpus):
    """Files with a JSON object per line. Blank lines and empty texts are passed over.

    Args:
        path: a file, a folder (its ``.jsonl`` and ``.ndjson`` files, or its ``.json`` files if it has none of
            these, with everything below) or a glob.
        val_path: the same for validation; then nothing is split off, and training text that is also in it is
            left out.
        val_fraction: share that becomes validation, by document; of a single document the tail.
        field: name of the field that holds the text; ``doc.text`` is the field ``text`` of the object in
            ``doc``, unless there is a field whose own name is that.
        errors: "strict": a byte that is not UTF-8 is an error; "replace": it becomes U+FFFD.
    """

    suffixes = ((".jsonl", ".ndjson"), (".json",))

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float, field: str, errors: str) -> None:
        super().__init__(path=path, val_path=val_path, val_fraction=val_fraction)
        self._field = str(field)
        self._errors = require_errors_mode(errors)

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        texts = self._texts(file.path for file in listing.files)
        if all(chunk.isspace() for text in texts for chunk in _decoded(text)):
            raise UserError("there is no text in it", key=key, value=path, hint=f"texts are taken from {self._field}")

    def settings(self) -> list[Any]:
        return [self._field, self._errors]

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        for data in self._texts(files):
            digest = hashlib.sha256(data).digest()
            same = digest
            if b"\r" in data:
                same = hashlib.sha256(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).digest()
            yield Document(digest, len(data), partial(_decoded, data), same)

    def _texts(self, files: Iterable[str]) -> Iterator[bytes]:
        """The texts that are not empty, as UTF-8: with an emoji in it a text takes four times as much as a string."""
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
        del decoded  # of a large document one copy is enough
        if not isinstance(record, dict):
            hint = _advice(start, file, number, "each line is an object, {…}, with the text in one of its fields")
            raise UserError("the line is not a JSON object", file=place, hint=hint)
        text, there = _look_up(record, self._field)
        if there is not None:
            has = f"the line has {', '.join(there[:20]) or 'no field'}"
            raise UserError("a line without the field", key="dataset.field", value=self._field, file=place, hint=has)
        if not isinstance(text, str):
            raise UserError(
                "the field is not text",
                key="dataset.field",
                value=self._field,
                file=place,
                hint="it must be a string",
            )
        return self._whole(text, place).lstrip("\ufeff")

    def _whole(self, text: str, place: str) -> str:
        """``text``, without halves of surrogate pairs, which an escape can make."""
        try:
            text.isascii() or text.encode()  # much quicker than to look at each character
        except UnicodeEncodeError:
            if self._errors == "strict":
                raise UserError(
                    "the text has half a surrogate pair, which is not a character",
                    file=place,
                    hint="mend the line, or read it with dataset.errors=replace",
                ) from None
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text


def _decoded(data: bytes) -> Iterator[str]:
    """UTF-8 as strings of about 1 MiB."""
    start = 0
    while start < len(data):
        text, used = codecs.utf_8_decode(data[start : start + CHUNK], "strict", False)
        yield text
        start += used


def _look_up(record: dict[str, Any], field: str) -> tuple[Any, list[str] | None]:
    """The value of a field, or of a field within objects, and None; else anything, and which fields there are.

    A field whose own name has the dots goes first.
    """
    if field in record:
        return record[field], None
    there = sorted(record)
    parts = field.split(".")
    for count in range(len(parts) - 1, 0, -1):
        outer, inner = ".".join(parts[:count]), ".".join(parts[count:])
        if isinstance(record.get(outer), dict):
            value, below = _look_up(record[outer], inner)
            if below is None:
                return value, None
            there += [f"{outer}.{name}" for name in below]
    return None, there


def _advice(decoded: str, file: str, number: int, otherwise: object) -> str:
    """What to do with a file whose line is no object; one whose first line opens a bracket is one JSON text."""
    start = decoded.strip()
    if number == 1 and start.startswith("["):
        return f"a JSON array? one object a line: jq -c '.[]' {shlex.quote(file)}"
    if number == 1 and start == "{":
        return f"an object over several lines? one object a line: jq -c . {shlex.quote(file)}"
    return f"{otherwise}; one object a line" if isinstance(otherwise, Exception) else str(otherwise)
