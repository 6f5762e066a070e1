"""The results of several arms side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.studies.probes.results import Probe, Score
from tinyllm.utils.files import write_text
from tinyllm.utils.tables import csv_text


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one arm."""

    arm: str
    settings: list[str]
    probes: list[Probe]

    def scores(self) -> dict[str, list[Score]]:
        """Those of every seed, by test."""
        found: dict[str, list[Score]] = {}
        for probe in self.probes:
            for name, score in probe.scores.items():
                found.setdefault(name, []).append(score)
        return found

    def accuracies(self) -> dict[str, float]:
        """The mean over the seeds, by test."""
        return {name: statistics.fmean(one.accuracy for one in scores) for name, scores in self.scores().items()}

    def plain(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self) | {"accuracies": self.accuracies()}


def table(rows: Sequence[Row]) -> Any:
    """Arms × tests: accuracy with its interval, over several seeds with its standard deviation; chance above."""
    from rich.table import Table

    seeds = max((len(scores) for row in rows for scores in row.scores().values()), default=1)
    how = "mean ± sd over seeds" if seeds > 1 else "95 % interval in brackets"
    found = Table(title=f"accuracy ({how})", title_justify="left")
    found.add_column("arm")
    tests = list(dict.fromkeys(name for row in rows for name in row.scores()))
    for name in tests:
        chance = next(row.scores()[name][0].chance for row in rows if name in row.scores())
        found.add_column(f"{name}\n[dim]chance {chance:.2f}", justify="right")
    found.add_column("parameters", justify="right")
    found.add_column("seconds", justify="right")
    for row in rows:
        cells = [cell(row.scores().get(name, [])) for name in tests]
        sizes = dict.fromkeys(f"{probe.parameters:,}" for probe in row.probes)
        found.add_row(row.arm, *cells, " ".join(sizes), f"{sum(probe.seconds for probe in row.probes):.0f}")
    return found


def cell(scores: Sequence[Score]) -> str:
    """The accuracy of one arm on one test; "" if there is none."""
    if not scores:
        return ""
    if len(scores) == 1:
        return f"{scores[0].accuracy:.3f} [dim]({scores[0].low:.3f}–{scores[0].high:.3f})"
    values = [one.accuracy for one in scores]
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line for each arm, seed and test.

    Raises:
        UserError: it cannot be written.
    """
    lines = [
        {"arm": row.arm, "task": probe.task, "seed": probe.seed, "test": name, **asdict(score)}
        | {"steps": probe.steps, "parameters": probe.parameters, "seconds": probe.seconds}
        for row in rows
        for probe in row.probes
        for name, score in probe.scores.items()
    ]

    names = list(lines[0]) if lines else ["arm"]
    write_text(path, csv_text(names, [list(line.values()) for line in lines]))
