"""A comparison in the terminal: the verdicts, the arms, and where the rest lies."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers
from tinyllm.studies.report.summary import ArmSummary, summaries
from tinyllm.utils.text import plain_data, shown_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Column = tuple[str, Callable[[ArmSummary], str]]
"""A heading, and what stands below it for an arm."""
_ENDLESS = 100_000
"""Columns of a line that nothing breaks."""
_COSTS: list[Column] = [
    ("params", lambda one: numbers.brief(one.arm.account.parameters)),
    ("FLOPs/tok", lambda one: numbers.brief(one.arm.account.flops_per_token)),
    ("KV B/tok", lambda one: numbers.whole(one.arm.account.kv_bytes_per_token)),
    ("memory", lambda one: numbers.size(one.peak_memory_bytes)),
    ("tokens/s", lambda one: numbers.rate(one.tokens_per_s)),
    ("decode/s", lambda one: numbers.rate(one.arm.decode_tokens_per_s)),
]


def show(study: Study, directory: Path | None = None) -> None:
    """Print the verdicts, a table of the arms and the paths of the report in ``directory``.

    In a file or pipe there are no colours, and no line is broken or cut off.
    """
    study = plain_data(study)
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=_ENDLESS)
    arms = summaries(study)
    console.print(Text(numbers.line(study.question), style="bold"))
    for one in study.verdicts:
        console.print(Text(f"  {numbers.line(one)}"))
    console.print()
    _print(console, study, arms)
    for one in study.notes:
        console.print(Text(f"note: {numbers.line(one)}", style="yellow"))
    if directory is not None:
        console.print(Text(f"report: {shown_path(directory / 'report.html')}"))
        console.print(Text(f"tables: {shown_path(directory)}/*.csv, text: {shown_path(directory / 'report.md')}"))


def _print(console: "Console", study: Study, arms: list[ArmSummary]) -> None:
    """One table, or two where the terminal is too narrow for it."""
    found, costs = _found(study), _COSTS
    whole = _table([*found, *costs], arms)
    fits = console.measure(whole, options=console.options.update(max_width=_ENDLESS)).maximum <= console.width
    for table in [whole] if fits else [_table(found, arms), _table(costs, arms)]:
        console.print(table)


def _found(study: Study) -> list[Column]:
    return [
        (numbers.metric_name(study.metric), lambda one: numbers.with_sd(one.mean, one.sd)),
        ("difference, 95 %", lambda one: "reference" if one.is_reference else numbers.interval(one.difference)),
        (
            "p, corrected",
            lambda one: "" if one.is_reference else numbers.probability(one.difference and one.difference.p_corrected),
        ),
        ("seeds", lambda one: str(len(one.finished))),
    ]


def _table(columns: list[Column], arms: list[ArmSummary]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for heading, _ in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for one in arms:
        cells = [Text(cell(one)) for _, cell in columns]
        table.add_row(Text(numbers.line(one.arm.name), style="bold" if one.is_reference else ""), *cells)
    return table
