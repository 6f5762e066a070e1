"""Per-arm summary of a study: statistics over an arm's runs and trials."""

import math
import statistics
from dataclasses import dataclass

from tinyllm.errors import one_line
from tinyllm.runs.metrics_log import source_keys
from tinyllm.studies.compare.results import Arm, Difference, Run, Study
from tinyllm.studies.compare.timing import minutes_trained


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm with statistics over its runs."""

    arm: Arm
    style: int
    """Number of its colour, marker and line style; the reference has 0."""
    is_reference: bool
    runs: list[Run]
    """All runs, including those without a result, by seed."""
    finished: list[Run]
    """Runs with a finite value, by seed."""
    mean: float | None
    sd: float | None
    """Standard deviation over seeds; None with fewer than two."""
    tokens_per_s: float | None
    """Median over the finished runs."""
    peak_memory_bytes: int | None
    """Maximum over the finished runs."""
    difference: Difference | None
    """Difference from the reference; None for the reference itself, or if there is nothing to compare."""

    @property
    def name(self) -> str:
        """The arm's name on one line, safe to print."""
        return one_line(self.arm.name)

    @property
    def values(self) -> dict[int, float]:
        """Metric by seed."""
        return {run.seed: run.value for run in self.finished if run.value is not None}

    @property
    def minutes(self) -> float | None:
        """Training minutes of one run, excluding evaluation and saving."""
        return minutes_trained(self.arm.tokens, self.tokens_per_s)

    @property
    def decode_ms(self) -> float | None:
        """Milliseconds per token when decoding one sequence."""
        return 1000 / self.arm.decode_tokens_per_s if self.arm.decode_tokens_per_s else None


def summaries(study: Study) -> list[ArmSummary]:
    """Summarize every arm, in the order of the study."""
    # Style 0 is the reference's; the other arms keep their order.
    order = sorted(study.arms, key=lambda arm: arm.name != study.reference)
    differences = {difference.arm: difference for difference in study.differences}
    return [_summary(study, arm, style=order.index(arm), difference=differences.get(arm.name)) for arm in study.arms]


def _summary(study: Study, arm: Arm, *, style: int, difference: Difference | None) -> ArmSummary:
    runs = sorted((run for run in study.runs if run.arm == arm.name), key=lambda run: run.seed)
    finished = [run for run in runs if run.status == "finished" and run.value is not None and math.isfinite(run.value)]
    values = [run.value for run in finished if run.value is not None]
    speeds = [run.tokens_per_s for run in finished if run.tokens_per_s is not None]
    peaks = [run.peak_memory_bytes for run in finished if run.peak_memory_bytes is not None]
    return ArmSummary(
        arm=arm,
        style=style,
        is_reference=arm.name == study.reference,
        runs=runs,
        finished=finished,
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        # The median ignores a run that was slowed down by something else on the machine.
        tokens_per_s=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=max(peaks, default=None),
        difference=difference,
    )


def reference_of(arms: list[ArmSummary]) -> ArmSummary | None:
    """The reference among the arms."""
    return next((summary for summary in arms if summary.is_reference), None)


def source_values(summary: ArmSummary, metric: str) -> dict[str, float]:
    """A metric of each source of a mixture at the last evaluation, averaged over the finished seeds."""
    last = [run.records[-1] for run in summary.finished if run.records]
    keys = source_keys(last[0], "val", metric) if last else {}
    return {
        source: statistics.fmean(record[key] for record in last)
        for source, key in keys.items()
        if all(key in record for record in last)
    }


def seed_differences(summary: ArmSummary, reference: ArmSummary | None) -> dict[int, float]:
    """Metric minus the reference's, for each seed that both have finished; empty for the reference itself."""
    if reference is None or summary.is_reference:
        return {}
    baseline = reference.values
    return {seed: value - baseline[seed] for seed, value in summary.values.items() if seed in baseline}


def tried(arm: Arm, key: str) -> list[tuple[float, float]]:
    """Pairs (value of a tuned key, metric) of the finished trials, sorted; only where both are numbers."""
    return sorted(
        (float(trial[key]), float(trial["value"]))
        for trial in arm.trials
        if _is_number(trial.get(key)) and _is_number(trial.get("value"))
    )


def at_the_edge(arm: Arm) -> list[str]:
    """Tuned keys whose chosen value is the smallest or largest one tried, so that a better one may lie beyond."""
    keys = []
    for key, value in arm.tuned.items():
        values = {float(trial[key]) for trial in arm.trials if _is_number(trial.get(key))}
        if len(values) > 1 and _is_number(value) and float(value) in (min(values), max(values)):
            keys.append(key)
    return keys


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
