"""The texts in the files of a data set, row by row: from disk, or from the hub while they are read."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllm.data.hub import access
from tinyllm.data.hub.layout import Layout
from tinyllm.data.parquet import INSTALL, require_text_column, table_texts, text_column
from tinyllm.errors import UserError
from tinyllm.utils.files import is_trusted, replace
from tinyllm.utils.late_imports import library

ROWS = 1024  # rows decoded at a time
PART = 64 << 20  # bytes of text in a part of the spool
REMOTE = "hf://"

Texts = Callable[[], Iterator[bytes]]
"""Reads the text of each row as UTF-8, empty where it is missing; the same at every call."""


def texts_in(layout: Layout, files: Sequence[str], field: str, *, start: int = 0) -> Iterator[bytes]:
    """The text of each row of some files as UTF-8, empty where it is missing.

    Args:
        files: paths, or addresses on the hub (``hf://…``).
        field: the column, or the path of a field of structs.
        start: rows at the beginning to leave out.

    Raises:
        UserError: a file is damaged or lacks the column, or the network failed.
    """
    parquet = layout.loader == "parquet"
    for file in files:
        if parquet and start:
            with _opened(file) as stream:
                size = library("pyarrow.parquet", hint=INSTALL).read_metadata(stream).num_rows
            if start >= size:
                start -= size
                continue
        if parquet:
            with _opened(file) as stream:
                for text in table_texts(stream, field, name=file, start=start):
                    yield text or b""
            start = 0
            continue
        for text in _loaded(layout, file, field):
            if start:
                start -= 1
            else:
                yield text or b""


class _opened:
    """A file on disk by its path, one on the hub as a stream."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stream: Any = None

    def __enter__(self) -> Any:
        if not self._file.startswith(REMOTE):
            return self._file
        self._stream = access.hub().HfFileSystem().open(self._file, "rb")
        return self._stream

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()


def _loaded(layout: Layout, file: str, field: str) -> Iterator[bytes | None]:
    """The texts of a file that is not Parquet, by the loader of ``datasets`` for it."""
    datasets = access.datasets_library()
    arrow = library("pyarrow", hint=INSTALL)
    try:
        builder = datasets.load_dataset_builder(layout.loader, data_files={"train": [file]}, **layout.settings)
        rows = builder.as_streaming_dataset("train").with_format("arrow")
        for number, table in enumerate(rows.iter(batch_size=ROWS)):
            if number == 0:
                require_text_column(table.schema, field, file=file)
            yield from text_column(table, field)
    except UserError:
        raise
    except (arrow.ArrowException, datasets.exceptions.DatasetsError, ValueError, TypeError, KeyError) as error:
        hint = f"{' '.join(str(error).split())[:200]}; fetch the file again, or give another loader's file"
        raise UserError(f"the {layout.loader} file cannot be read", file=file, hint=hint) from error


class Spool:
    """The texts of a data set that is read from the hub only as far as they are needed, and only once.

    What was read is kept in parts on disk. Each is named by its rows, and so holds the same for every process that
    writes it; a reading that was broken off goes on after the last part.

    Args:
        folder: holds the parts; one per data set, commit, split and column.
        source: reads the texts from the hub, without so many rows at the beginning.
        name: of the data set, for error messages.
    """

    def __init__(self, folder: Path, source: Callable[[int], Iterator[bytes]], *, name: str) -> None:
        self._folder, self._source, self._name = folder, source, name

    def __call__(self) -> Iterator[bytes]:
        row = 0
        while (part := self._part(row)) is not None:
            for text in table_texts(str(part), "text", name=str(part)):
                row += 1
                yield text or b""
        yield from self._fetched(row)

    def _part(self, row: int) -> Path | None:
        """The longest part that begins at a row; none that a different user put into a shared cache."""
        root = self._folder.parent
        parts = self._folder.glob(f"{row:012}-*.parquet")
        found = sorted(part for part in parts if all(is_trusted(path, root=root) for path in (self._folder, part)))
        return found[-1] if found else None

    def _fetched(self, row: int) -> Iterator[bytes]:
        """The texts from a row on, which are kept as they are read."""
        texts: list[bytes] = []
        size = 0
        try:
            with access.broken_download(self._name):
                for text in self._source(row):
                    texts.append(text)
                    size += len(text)
                    if size >= PART:
                        self._keep(texts, row)
                        row, texts, size = row + len(texts), [], 0
                    yield text
        finally:  # reached also where the reader has enough
            if texts:
                self._keep(texts, row)

    def _keep(self, texts: list[bytes], row: int) -> None:
        arrow, parquet = (library(name, hint=INSTALL) for name in ("pyarrow", "pyarrow.parquet"))
        table = arrow.table({"text": arrow.array(texts, type=arrow.large_binary()).cast(arrow.large_string())})
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{row:012}-{row + len(texts):012}.parquet"
        replace(file, lambda stream: parquet.write_table(table, stream, compression="zstd"))
