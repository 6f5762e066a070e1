"""Tables: drawn in a terminal, columns of plain text elsewhere, and CSV for other programs."""

import csv
import io
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tinyllm.utils.text import escape_control


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    right: bool = False
    """Align to the right, as for numbers."""
    styles: Mapping[str, str] = field(default_factory=dict)
    """The rich style of a cell by its text."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, rows of cells, and their formatting; control characters in cells are escaped.

    Args:
        bold: indices of rows to emphasize.
        sections: indices of rows above which a line is drawn.
        header: show the names of the columns.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bold: Collection[int] = ()
    sections: Collection[int] = ()
    header: bool = True

    def show(self, stream: TextIO | None = None) -> None:
        """Print to ``stream`` (default: standard output): drawn in a terminal, else as columns of plain text."""
        stream = stream or sys.stdout
        if stream.isatty():
            Console(file=stream, highlight=False).print(self._drawn())
        else:
            print("\n".join(self.lines()), file=stream)

    def lines(self) -> list[str]:
        """Untruncated plain text: columns padded with spaces and separated by two, below the title."""
        cells = [[column.name for column in self.columns]] * self.header + [
            [escape_control(cell) for cell in row] for row in self.rows
        ]
        widths = [max((len(row[index]) for row in cells), default=0) for index in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            ).rstrip()
            for row in cells
        ]
        return [self.title] * bool(self.title) + lines

    @property
    def drawn_width(self) -> int:
        """Characters in a line of the drawn table when no cell is wrapped."""
        console = Console(width=_UNLIMITED)
        return console.measure(self._drawn()).maximum

    def _drawn(self) -> RichTable:
        table = RichTable(
            box=ROUNDED, title=self.title or None, title_justify="left", header_style="bold", show_header=self.header
        )
        for column in self.columns:
            table.add_column(Text(column.name), justify="right" if column.right else "left", overflow="fold")
        for index, row in enumerate(self.rows):
            if index in self.sections:
                table.add_section()
            texts = [
                Text(escape_control(cell), style=column.styles.get(cell, ""))
                for cell, column in zip(row, self.columns, strict=True)
            ]
            table.add_row(*texts, style="bold" if index in self.bold else None)
        return table


_UNLIMITED = 100_000


def csv_text(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV under a header line; None is an empty field.

    Text that a spreadsheet would read as a formula is prefixed with ``'``, which marks it as text (OWASP, CSV
    Injection). Numbers, negative ones included, stay as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[_not_a_formula(cell) for cell in row] for row in (names, *rows)])
    return text.getvalue()


def _not_a_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = escape_control(cell)
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) and not _is_number(cell) else cell


_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""First characters of a formula. Spreadsheets accept the full-width forms too, and skip spaces before them."""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
