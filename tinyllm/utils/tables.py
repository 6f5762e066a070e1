"""Tables: drawn in a terminal, columns of text of their full width elsewhere, and CSV for other programs."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from tinyllm.utils.text import plain


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    right: bool = False
    """Aligned to the right, as numbers are."""
    styles: Mapping[str, str] = field(default_factory=dict)
    """rich's style of a cell by its text."""


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None) -> None:
    """Print the table to ``stream``; None: standard output. Control characters in cells are spelled out."""
    stream = stream or sys.stdout
    rows = [[plain(cell) for cell in cells] for cells in rows]
    if stream.isatty():
        _draw(columns, rows, stream)
        return
    lines = [[column.name for column in columns], *rows]
    widths = [max(len(cells[index]) for cells in lines) for index in range(len(columns))]
    for cells in lines:
        sized = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        print("  ".join(sized).rstrip(), file=stream)


def _draw(columns: Sequence[Column], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ROUNDED, header_style="bold")
    for column in columns:
        table.add_column(Text(column.name), justify="right" if column.right else "left", overflow="fold")
    for cells in rows:
        table.add_row(
            *(Text(cell, style=column.styles.get(cell, "")) for cell, column in zip(cells, columns, strict=True))
        )
    Console(file=stream, highlight=False).print(table)


def csv_text(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV under a line of names; None is an empty field.

    Text that a spreadsheet would take for a formula is given a ``'`` in front, which spreadsheets read as "what follows
    is text" (OWASP, CSV Injection). Numbers are left alone, negative ones too.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[_not_a_formula(cell) for cell in row] for row in (names, *rows)])
    return text.getvalue()


def _not_a_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = plain(cell)
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) and not _is_number(cell) else cell


_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a formula begins with; spreadsheets take the full-width forms for the same, and skip blanks before them."""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
