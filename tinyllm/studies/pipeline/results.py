"""Results of a pipeline: what ``pipeline.json`` holds and the report shows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

FILE = "pipeline.json"
SHARES = ("exact", "ended", "truncated", "rate", "accuracy")
"""Last parts of the names of metrics that are shares between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure that is measured after stages.

    Attributes:
        name: as tables show it.
        metric: its name in the result of ``evaluate``.
        measure: the measure of the recipe that it belongs to.
    """

    name: str
    metric: str
    measure: str

    @property
    def is_share(self) -> bool:
        """Whether it is a share, shown in percent."""
        last = self.metric.rpartition("/")[2]
        return last.startswith("pass@") or last.endswith(SHARES)

    def shown(self, value: float) -> str:
        """A value as text."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a model made of a prompt: its continuation, or its answer."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage of one seed.

    Attributes:
        path: relative to the pipeline's directory.
        command: what a user would type to run it alone.
        seconds: of the program, over all its starts; None for a stage of pairs that was found finished.
        values: what was measured after it, by column.
        samples: one for each prompt of the recipe.
        metric: what its run was judged by, with its value at each evaluation by step.
        counts: what a stage of pairs reports.
    """

    name: str
    program: str
    seed: int
    path: str
    command: str
    seconds: float | None
    steps: int | None
    tokens: int | None
    values: Mapping[str, float]
    samples: list[Sample]
    metric: str
    curve: list[tuple[int, float]]
    counts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """A whole pipeline.

    Attributes:
        command: the command that made it.
        talk: a command to talk to the last model, or to let it continue a text.
        digests: sha256 of every run's files, by its directory.
    """

    recipe: str
    command: str
    seeds: list[int]
    columns: list[Column]
    stages: list[StageResult]
    talk: str
    provenance: Mapping[str, Any]
    digests: Mapping[str, Mapping[str, str]]

    @property
    def names(self) -> list[str]:
        """The stages in their order."""
        return list(dict.fromkeys(stage.name for stage in self.stages))

    @property
    def trained(self) -> list[str]:
        """The stages that train, in their order."""
        return list(dict.fromkeys(stage.name for stage in self.stages if stage.metric))

    def of(self, name: str) -> list[StageResult]:
        """A stage with each seed."""
        return [stage for stage in self.stages if stage.name == name]

    def values(self, name: str, column: Column) -> list[float]:
        """What was measured after a stage, with each seed."""
        return [stage.values[column.name] for stage in self.of(name) if column.name in stage.values]


def mean_text(values: Iterable[float], column: Column) -> str:
    """The mean of a column, with ± its standard deviation over seeds if there are several; "": not measured."""
    values = list(values)
    if not values:
        return ""
    if len(values) == 1:
        return column.shown(values[0])
    mean, spread = column.shown(fmean(values)), column.shown(stdev(values))
    return f"{mean.rstrip('%')} ± {spread}" if column.is_share else f"{mean} ± {stdev(values):.2g}"
