"""Parquet corpus: each row a document, in one of the columns."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tinyllm.data.document import Document
from tinyllm.data.file_corpus import Contents, FileCorpus
from tinyllm.data.files import read_head
from tinyllm.data.finding import Listing
from tinyllm.data.formats import advice_for, kind_of
from tinyllm.data.selection import text_documents
from tinyllm.errors import UserError
from tinyllm.utils.late_imports import library

MAGIC = b"PAR1"
ROWS = 1024  # rows decoded at a time
INSTALL = "pip install 'tinyllm[data]'"


class ParquetCorpus(FileCorpus):
    """Parquet files; a row is a document. Empty and missing values are skipped. Needs the extra ``data``.

    Args:
        field: column that holds the text. ``doc.text`` means the field ``text`` of the structs in the column ``doc``,
            unless a column is itself named ``doc.text``.
        files: arguments of the base class.
    """

    suffixes = ((".parquet",),)

    def __init__(self, *, field: str, **files: Any) -> None:
        super().__init__(**files)
        self._field = str(field)
        library("pyarrow.parquet", hint=INSTALL, key="dataset", value="parquet")

    def look(self, listing: Listing, *, key: str, path: str) -> None:
        for file in listing.files:
            with opened_table(file.path, self._field, name=file.path):
                pass
        if not any(not text.isspace() for text in self._texts(file.path for file in listing.files)):
            raise UserError(
                "it contains no text", key=key, value=path, hint=f"it is read from the column {self._field}"
            )

    def settings(self) -> list[Any]:
        return [self._field]

    def documents(self, files: Sequence[str], contents: Contents) -> Iterator[Document]:
        return text_documents(self._texts(files))

    def _texts(self, files: Iterable[str]) -> Iterator[bytes]:
        """The nonempty texts as UTF-8."""
        for file in files:
            yield from filter(None, table_texts(file, self._field, name=file))


def table_texts(file: Any, field: str, *, name: str, start: int = 0) -> Iterator[bytes | None]:
    """The text of each row of a Parquet file as UTF-8, None where it is missing.

    Args:
        file: a path or an open file.
        field: the column, or the path of a field of structs.
        name: of the file, for error messages.
        start: rows at the beginning to leave out; row groups of them are not read.

    Raises:
        UserError: it is damaged, lacks the column, or a text is not UTF-8.
    """
    with opened_table(file, field, name=name) as table:
        row = 0
        groups: list[int] = []
        for group in range(table.metadata.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if not groups and row + size <= start:
                row += size
            else:
                groups.append(group)
        for batch in table.iter_batches(batch_size=ROWS, row_groups=groups, columns=[field]) if groups else ():
            for text in text_column(batch, field):
                row += 1
                if row > start:
                    yield checked_utf8(text, f"{name}, row {row:,}") if text else None


def text_column(table: Any, field: str) -> list[bytes | None]:
    """The texts of a column of a ``pyarrow`` table or batch, or of a field of its structs, as UTF-8."""
    arrow = library("pyarrow", hint=INSTALL)
    if field in table.schema.names:
        column = table.column(field)
    else:
        compute = library("pyarrow.compute", hint=INSTALL)
        top, *rest = field.split(".")
        column = compute.struct_field(table.column(top), rest)
    texts: list[bytes | None] = column.cast(arrow.large_string()).cast(arrow.large_binary()).to_pylist()
    return texts


@contextmanager
def opened_table(file: Any, field: str, *, name: str) -> Iterator[Any]:
    """A Parquet file, given by a path or as an open file, whose column is known to be text.

    Raises:
        UserError: it is damaged, also while it is read, or lacks the column.
    """
    arrow, parquet = library("pyarrow", hint=INSTALL), library("pyarrow.parquet", hint=INSTALL)
    if isinstance(file, str) and not (head := read_head(file, unpack=False)).startswith(MAGIC):
        kind = kind_of(head, file)
        hint = advice_for(kind, file) if kind else "the file is text: use dataset=text or dataset=jsonl"
        raise UserError("the file is not a Parquet table", file=name, hint=hint)
    try:
        with parquet.ParquetFile(file) as table:
            require_text_column(table.schema_arrow, field, file=name)
            yield table
    except (arrow.ArrowException, OSError) as error:
        if not isinstance(error, arrow.ArrowException) and not isinstance(file, str):
            raise  # the network
        hint = f"{str(error).partition('. ')[0]}; fetch the file again"
        raise UserError("the Parquet file is damaged", file=name, hint=hint) from None


def require_text_column(schema: Any, field: str, *, file: object) -> None:
    """Refuse a column that is missing or not text.

    Args:
        schema: a ``pyarrow.Schema``.
        field: its name, or the path of a field of structs.

    Raises:
        UserError: names the columns there are.
    """
    kind: Any
    if field in schema.names:
        kind = schema.field(field).type
    else:
        top, *rest = field.split(".")
        kind = schema.field(top).type if top in schema.names else None
        for part in rest:
            is_struct = kind is not None and str(kind).startswith("struct")
            fields = [kind.field(i) for i in range(kind.num_fields)] if is_struct else []
            kind = next((found.type for found in fields if found.name == part), None)
        if kind is None or not rest:
            names = ", ".join(schema.names[:20])
            raise UserError("no such column", key="dataset.field", value=field, file=file, hint=f"there are {names}")
    words = str(kind)
    if words not in ("string", "large_string", "string_view") and not words.startswith("dictionary<values=string"):
        hint = "it must hold strings"
        raise UserError(f"the column holds {words}", key="dataset.field", value=field, file=file, hint=hint)


def checked_utf8(text: bytes, place: str) -> bytes:
    """``text`` if it is UTF-8, which Parquet files promise and some break. Raises UserError otherwise."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        what = f"byte 0x{text[error.start]:02x} (byte {error.start} of the text) is not UTF-8"
        raise UserError(what, file=place, hint="write the file again with valid text") from None
    return text
