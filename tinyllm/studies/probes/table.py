"""Results of several arms side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllm.studies.probes.results import Probe, Score
from tinyllm.utils.files import write_text
from tinyllm.utils.tables import Column, Table, csv_text


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one arm."""

    arm: str
    settings: list[str]
    probes: list[Probe]

    def scores(self) -> dict[str, list[Score]]:
        """Scores of all seeds, by test."""
        scores: dict[str, list[Score]] = {}
        for probe in self.probes:
            for test, score in probe.scores.items():
                scores.setdefault(test, []).append(score)
        return scores

    def accuracies(self) -> dict[str, float]:
        """Mean accuracy over the seeds, by test."""
        return {test: statistics.fmean(score.accuracy for score in scores) for test, scores in self.scores().items()}

    def as_dict(self) -> dict[str, Any]:
        """The row as plain containers, with its accuracies."""
        return asdict(self) | {"accuracies": self.accuracies()}


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Arms × tests: accuracy with its interval for one seed, or with its standard deviation over several."""
    by_arm = [row.scores() for row in rows]
    chances = {test: scores[0].chance for by_test in by_arm for test, scores in by_test.items()}
    several = any(len(scores) > 1 for by_test in by_arm for scores in by_test.values())
    lines = [["chance", *(f"{chance:.2f}" for chance in chances.values()), "", ""]]
    for row, by_test in zip(rows, by_arm, strict=True):
        sizes = dict.fromkeys(f"{probe.parameters:,}" for probe in row.probes)
        seconds = sum(probe.seconds for probe in row.probes)
        cells = [cell(by_test.get(test, [])) for test in chances]
        lines.append([row.arm, *cells, " ".join(sizes), f"{seconds:.0f}"])
    return Table(
        title=f"accuracy ({'mean ± sd over seeds' if several else '95 % interval in parentheses'})",
        columns=[Column(name="arm"), *(Column(name=name, right=True) for name in (*chances, "parameters", "seconds"))],
        rows=lines,
        sections=[1],
    )


def cell(scores: Sequence[Score]) -> str:
    """Accuracy of one arm on one test; empty if it was not measured."""
    if not scores:
        return ""
    if len(scores) == 1:
        return f"{scores[0].accuracy:.3f} ({scores[0].low:.3f}–{scores[0].high:.3f})"
    values = [score.accuracy for score in scores]
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line for each arm, seed and test.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [
        {"arm": row.arm, "task": probe.task, "seed": probe.seed, "test": test, **asdict(score)}
        | {"steps": probe.steps, "parameters": probe.parameters, "seconds": probe.seconds}
        for row in rows
        for probe in row.probes
        for test, score in probe.scores.items()
    ]
    names = list(lines[0]) if lines else ["arm"]
    write_text(path, csv_text(names, [list(line.values()) for line in lines]))
