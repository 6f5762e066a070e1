"""Building blocks of a report; the HTML page and the Markdown file render the same blocks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tinyllm.errors import one_line
from tinyllm.studies.report import numbers
from tinyllm.studies.report.svg import Picture


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    sort: float | str | None = None
    """Sort key; cells without one come last."""
    arm: int | None = None
    """Style number of the arm that the cell names."""
    strong: bool = False


def text_cell(text: str, *, strong: bool = False) -> Cell:
    """A cell of words, on one line."""
    text = one_line(text) or numbers.MISSING
    return Cell(text=text, sort=text, strong=strong)


def number_cell(number: Any, shown: Callable[[Any], str], *, strong: bool = False) -> Cell:
    """A number formatted by ``shown``; a dash for None."""
    return Cell(text=numbers.or_missing(number, shown), sort=number, strong=strong)


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Rows under headings; the first column names the row."""

    kind: ClassVar[str] = "table"
    headings: list[str]
    rows: list[list[Cell]]
    sortable: bool = True
    caption: str = ""

    def text_columns(self) -> list[bool]:
        """Whether each column holds words, which are aligned left; numbers are aligned right."""
        return [any(isinstance(row[column].sort, str) for row in self.rows) for column in range(len(self.headings))]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Pictures with one caption."""

    kind: ClassVar[str] = "figures"
    pictures: list[Picture]
    caption: str
    choice: str = ""
    """Label of the buttons that select one picture at a time; empty: all pictures side by side."""
    name: str = ""
    """Name of that group of buttons."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """A bulleted list."""

    kind: ClassVar[str] = "points"
    items: list[str]
    tone: str = ""
    """CSS class; ``warning`` highlights the list."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Commands to copy."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    """Collapsed under this title; empty: always visible."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A table collapsed under a title."""

    kind: ClassVar[str] = "folded"
    title: str
    table: DataTable


Block = DataTable | Figures | Text | Points | Code | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    name: str
    """Anchor for links."""
    title: str
    blocks: list[Block] = field(default_factory=list)
