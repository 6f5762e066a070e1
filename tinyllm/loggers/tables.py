"""A table for a person: drawn in a terminal, columns of text of their full width elsewhere."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    right: bool = False
    """Aligned to the right, as numbers are."""
    styles: Mapping[str, str] = field(default_factory=dict)
    """rich's style of a cell by its text."""


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None) -> None:
    """Print the table to ``stream``; None: standard output."""
    stream = stream or sys.stdout
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
