"""Data sets of records, split by prompt: what conversations, preferences and prompts have in common."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from tinyllm.data.finding import find_files
from tinyllm.data.hub.records import HubRecords
from tinyllm.data.records import JSON_LINES, PARQUET, read_records
from tinyllm.errors import UserError
from tinyllm.utils.files import expand_home

R = TypeVar("R")


class RecordCorpus(ABC, Generic[R]):
    """Records from JSON lines or Parquet tables, or from a data set of the Hugging Face hub.

    The data are read into memory and encoded at every start; they are not cached.

    Args:
        path: a file, a folder or a glob; or a copy of a data set of the hub, if one of its splits is named.
        val_path: the same for validation, but no copy.
        val_fraction: fraction of the records that becomes validation if there is no ``val_path``.
        name: ``user/set`` of the hub, in place of ``path``.
        config, revision, split, val_split: which part of such a set is read; see
            :class:`tinyllm.data.hub.corpus.HubCorpus`.

    Raises:
        UserError: the fraction is out of range, or nothing or too much is named.
    """

    content: ClassVar[str] = "text"
    records: ClassVar[str]
    """What the records are called, for messages."""

    def __init__(
        self,
        *,
        path: str | None,
        val_path: str | None,
        val_fraction: float,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        split: str = "train",
        val_split: str | None = None,
    ) -> None:
        if not 0 < val_fraction < 1:
            hint = "between 0 and 1"
            raise UserError("not a fraction of the data", key="dataset.val_fraction", value=val_fraction, hint=hint)
        if path is None and name is None:
            hint = "dataset.path=… for files, or dataset.name=user/set for a data set of the hub"
            raise UserError(f"no {self.records} are named", key="dataset.path", value=None, hint=hint)
        self.path, self.val_path, self.val_fraction = str(path or name), val_path, val_fraction
        of_hub = {"config": config, "split": None if split == "train" else split, "val_split": val_split}
        given = next((key for key, value in of_hub.items() if value is not None), None)
        self._hub: HubRecords | None = None
        if name is not None or (given and os.path.isdir(expand_home(str(path)))):
            self._hub = HubRecords(name=name, path=path, config=config, revision=revision)
        elif given:
            hint = "only data sets of the hub and their copies, which are directories, have it; leave it out"
            raise UserError("the key has no effect here", key=f"dataset.{given}", value=of_hub[given], hint=hint)
        if val_split is not None and val_path is not None:
            hint = f"dataset.val_path names the {self.records} of validation, too; leave one of the two out"
            raise UserError("two validations", key="dataset.val_split", value=val_split, hint=hint)
        self._splits = split, val_split

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
            if self._hub is not None and self._hub.name is not None and key != "dataset.val_path":  # fetched later
                self._hub.files(path, key=key, fetch=False)
            else:
                next(self.read(key, path))

    @property
    def revision(self) -> str | None:
        """The commit of a data set of the hub, once it is known; None: files have none."""
        return self._hub.revision if self._hub else None

    def pin(self, revision: str | None) -> None:
        """Read this version of a data set of the hub, unless the settings name one; files have no versions."""
        if self._hub:
            self._hub.pin(revision)

    def check_length(self, n_steps: int) -> None:
        """The order is the same for runs of any length."""

    def places(self) -> list[tuple[str, str]]:
        """The settings that name files or splits, with their values: training, then validation if it is named."""
        split, val_split = self._splits
        given = [] if self.val_path is None else [("dataset.val_path", str(self.val_path))]
        if self._hub is None:
            return [("dataset.path", self.path), *given]
        return [("dataset.split", split), *([("dataset.val_split", val_split)] if val_split else given)]

    def read(self, key: str, path: str) -> Iterator[R]:
        """The records of the files or of the split that a setting names.

        Raises:
            UserError: there are none, or one is not what it should be.
        """
        if self._hub is not None and key != "dataset.val_path":
            files = self._hub.files(path, key=key)
            return records_in(files, key=key, value=path, parse=self.parse, records=self.records)
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
