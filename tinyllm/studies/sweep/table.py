"""The table at the end of a sweep."""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from tinyllm.studies.sweep.job_record import FAILED, FINISHED, INTERRUPTED, NOT_STARTED, SKIPPED, Record, status_of
from tinyllm.utils.text import plain

COLUMNS = ("job", "overrides", "status", "val loss", "bpb", "tokens/s")
STYLES = {FINISHED: "green", SKIPPED: "dim green", FAILED: "red", INTERRUPTED: "yellow", NOT_STARTED: "dim"}


def row_of(record: Record, skipped: Iterable[str]) -> tuple[str, ...]:
    """The cells of a job."""
    figures = (
        "" if record.val_loss is None else f"{record.val_loss:.4f}",
        "" if record.val_bpb is None else f"{record.val_bpb:.4f}",
        "" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f}",
    )
    return (str(record.number), plain(record.label), status_of(record, skipped), *figures)


def show_table(
    records: Sequence[Record], skipped: Iterable[str], *, best: Record | None, stream: TextIO | None = None
) -> None:
    """Print the table: drawn in a terminal, columns of text elsewhere.

    Args:
        skipped: names of jobs that were finished before this start of the sweep.
        best: the job to point out.
    """
    skipped, stream = set(skipped), stream or sys.stdout
    rows = [row_of(record, skipped) for record in records]
    if stream.isatty():
        _draw(rows, best, stream)
        return
    widths = [max(len(cells[column]) for cells in [COLUMNS, *rows]) for column in range(len(COLUMNS))]
    for cells in [COLUMNS, *rows]:
        left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        print("  ".join([*left, *right]).rstrip(), file=stream)


def _draw(rows: Sequence[tuple[str, ...]], best: Record | None, stream: TextIO) -> None:
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ROUNDED, title="sweep", title_style="bold", header_style="bold")
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if 0 < index < 3 else "right", overflow="fold")
    for cells in rows:
        is_best = best is not None and cells[0] == str(best.number)
        shown = [Text(cell, style="bold" if is_best else "") for cell in cells]
        shown[2].stylize(STYLES.get(cells[2], ""))
        table.add_row(*shown)
    Console(file=stream, highlight=False).print(table)
