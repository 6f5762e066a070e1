"""Data sets of records, split by prompt: what conversations, preferences and prompts have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from tinyllm.data.finding import find_files
from tinyllm.data.records import JSON_LINES, PARQUET, read_records
from tinyllm.errors import UserError

R = TypeVar("R")


class RecordCorpus(ABC, Generic[R]):
    """Records from JSON lines or Parquet tables.

    The data are read into memory and encoded at every start; they are not cached.

    Args:
        path: a file, a folder or a glob.
        val_path: the same for validation.
        val_fraction: fraction of the records that becomes validation if there is no ``val_path``.

    Raises:
        UserError: the fraction is out of range.
    """

    content: ClassVar[str] = "text"
    records: ClassVar[str]
    """What the records are called, for messages."""

    def __init__(self, *, path: str, val_path: str | None, val_fraction: float) -> None:
        if not 0 < val_fraction < 1:
            hint = "between 0 and 1"
            raise UserError("not a fraction of the data", key="dataset.val_fraction", value=val_fraction, hint=hint)
        self.path, self.val_path, self.val_fraction = str(path), val_path, val_fraction

    @staticmethod
    @abstractmethod
    def parse(record: Any, *, place: str) -> R:
        """The value of a record.

        Raises:
            UserError: it is none of these records.
        """

    def check(self) -> None:
        """Refuse files that are missing or whose first record is not what it should be.

        Raises:
            UserError: they are.
        """
        for key, path in self.places():
            next(self.read(key, path))

    @property
    def revision(self) -> str | None:
        """The version of the data at their origin; None: files have none."""
        return None

    def pin(self, revision: str | None) -> None:
        """Files have no versions."""

    def check_length(self, n_steps: int) -> None:
        """The order is the same for runs of any length."""

    def places(self) -> list[tuple[str, str]]:
        """The settings that name files, with their values; training first."""
        given = [] if self.val_path is None else [("dataset.val_path", str(self.val_path))]
        return [("dataset.path", self.path), *given]

    def read(self, key: str, path: str) -> Iterator[R]:
        """The records of the files that a setting names.

        Raises:
            UserError: there are none, or one is not what it should be.
        """
        return read_all(key, path, parse=self.parse, records=self.records)


def read_all(key: str, path: str, *, parse: Callable[..., R], records: str) -> Iterator[R]:
    """The parsed records of a file, a folder or a glob.

    Args:
        key: the setting that names them, for messages.
        records: what they are called, for messages.

    Raises:
        UserError: there are none, or one cannot be parsed.
    """
    listing = find_files(path, key=key, suffixes=(JSON_LINES, PARQUET))
    yield from records_in([file.path for file in listing.files], key=key, value=path, parse=parse, records=records)


def records_in(files: Sequence[str], *, key: str, value: str, parse: Callable[..., R], records: str) -> Iterator[R]:
    """The parsed records of files.

    Args:
        key, value: the setting that names them, for messages.
        records: what they are called, for messages.

    Raises:
        UserError: there are none, or one cannot be parsed.
    """
    is_empty = True
    for place, record in read_records(files):
        is_empty = False
        yield parse(record, place=place)
    if is_empty:
        raise UserError(f"it contains no {records}", key=key, value=value, hint="one JSON object per line")
