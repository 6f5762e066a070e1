"""A comparison in the terminal: verdicts, a table of the arms, and the location of the full report."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tinyllm.errors import one_line
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import numbers
from tinyllm.studies.report.summary import ArmSummary, summaries
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import escape_control_in, shown_path

Shown = dict[str, Callable[[ArmSummary], str]]
"""Columns of the table: heading, and the text for an arm."""
_COSTS: Shown = {
    "params": lambda arm: numbers.brief(arm.arm.account.parameters),
    "FLOPs/tok": lambda arm: numbers.brief(arm.arm.account.flops_per_token),
    "KV B/tok": lambda arm: numbers.whole(arm.arm.account.kv_bytes_per_token),
    "memory": lambda arm: numbers.or_missing(arm.peak_memory_bytes, numbers.size),
    "tokens/s": lambda arm: numbers.or_missing(arm.tokens_per_s, numbers.rate),
    "decode/s": lambda arm: numbers.or_missing(arm.arm.decode_tokens_per_s, numbers.rate),
}


def show(study: Study, directory: Path | None = None) -> None:
    """Print the verdicts, a table of the arms, and the paths of the report in ``directory``.

    In a file or pipe there are no colours, and lines are neither wrapped nor cut off.
    """
    study = escape_control_in(study)
    console = Console(highlight=False, soft_wrap=True)
    arms = summaries(study)
    console.print(Text(one_line(study.question), style="bold"))
    for verdict in study.verdicts:
        console.print(Text(f"  {one_line(verdict)}"))
    console.print()
    for table in _tables(study, arms, width=console.width if console.is_terminal else None):
        table.show()
    console.print()
    for note in study.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"))
    if directory is not None:
        console.print(Text(f"report: {shown_path(directory / 'report.html')}"))
        console.print(Text(f"tables: {shown_path(directory)}/*.csv, text: {shown_path(directory / 'report.md')}"))


def _tables(study: Study, arms: list[ArmSummary], *, width: int | None) -> list[Table]:
    """One table, or two if it is wider than the terminal (None: no limit)."""
    results: Shown = {
        numbers.metric_name(study.metric): lambda arm: numbers.with_sd(arm.mean, arm.sd),
        "difference, 95 %": lambda arm: "reference" if arm.is_reference else numbers.interval(arm.difference),
        "p, corrected": _corrected_p,
        "seeds": lambda arm: str(len(arm.finished)),
    }
    whole = _table(results | _COSTS, arms)
    if width is None or whole.drawn_width <= width:
        return [whole]
    return [_table(results, arms), _table(_COSTS, arms)]


def _corrected_p(arm: ArmSummary) -> str:
    return "" if arm.is_reference else numbers.probability(arm.difference.p_corrected if arm.difference else None)


def _table(shown: Shown, arms: list[ArmSummary]) -> Table:
    return Table(
        columns=[Column(name="arm"), *(Column(name=heading, right=True) for heading in shown)],
        rows=[[arm.name, *(text(arm) for text in shown.values())] for arm in arms],
        bold=[index for index, arm in enumerate(arms) if arm.is_reference],
    )
