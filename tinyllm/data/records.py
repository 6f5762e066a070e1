"""Records: JSON objects, one per line, or the rows of Parquet tables."""

from collections.abc import Iterator, Sequence
from typing import Any

from tinyllm.data.compression import SUFFIXES
from tinyllm.data.files import NOT_UTF8, read_lines
from tinyllm.data.parquet import INSTALL, ROWS
from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json
from tinyllm.utils.late_imports import library

JSON_LINES = tuple(suffix + packed for suffix in (".jsonl", ".ndjson", ".json") for packed in ("", *SUFFIXES))
PARQUET = (".parquet",)


def read_records(files: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The place (``file:line``, or ``file, row n``) and the value of every record; blank lines are skipped.

    Raises:
        UserError: a file cannot be read, or a line is not JSON.
    """
    for file in files:
        yield from _rows(file) if file.lower().endswith(PARQUET) else _lines(file)


def _lines(file: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(file), start=1):
        place = f"{file}:{number}"
        try:
            text = line.decode().rstrip()
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} (byte {error.start} of the line) is not UTF-8"
            raise UserError(what, file=place, hint=NOT_UTF8) from None
        if not text:
            continue
        try:
            yield place, parse_json(text, finite=False)
        except ValueError as error:
            column = getattr(error, "colno", None)
            where = f"{place}, column {column}" if column else place
            raise UserError("the line is not JSON", file=where, hint=f"{error}; write one object per line") from None


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    arrow, parquet = library("pyarrow", hint=INSTALL), library("pyarrow.parquet", hint=INSTALL)
    row = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=ROWS):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{file}, row {row:,}", record
    except (arrow.ArrowException, OSError) as error:
        hint = f"{str(error).partition('. ')[0]}; fetch the file again"
        raise UserError("the Parquet file is damaged", file=file, hint=hint) from None
