"""What a report is put together from; the page and the Markdown show the same blocks."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tinyllm.studies.report.svg import Picture


@dataclass(frozen=True)
class Cell:
    """A field of a table."""

    text: str
    sort: float | str | None = None
    """What it is sorted by; None: last."""
    arm: int | None = None
    """The style of the arm that it names."""
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings; the first column names the row."""

    kind: ClassVar[str] = "table"
    headings: list[str]
    rows: list[list[Cell]]
    sortable: bool = True
    caption: str = ""

    def words(self) -> list[bool]:
        """For each column whether it holds words; figures are set to the right."""
        return [any(isinstance(row[place].sort, str) for row in self.rows) for place in range(len(self.headings))]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Pictures with one caption."""

    kind: ClassVar[str] = "figures"
    pictures: list[Picture]
    caption: str
    choice: str = ""
    """What the reader chooses among them by, one shown at a time; empty: they stand side by side."""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """Sentences of equal rank."""

    kind: ClassVar[str] = "points"
    items: list[str]
    tone: str = ""
    """warning: they limit what stands elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    """What is seen of it until it is opened; empty: it is open."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A table that is opened on demand."""

    kind: ClassVar[str] = "folded"
    title: str
    table: Table


Block = Table | Figures | Text | Points | Code | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    name: str
    """For links."""
    title: str
    blocks: list[Any] = field(default_factory=list)
