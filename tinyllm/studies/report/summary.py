"""What a report says of each arm, drawn together from its runs."""

import math
import statistics
from dataclasses import dataclass

from tinyllm.studies.compare.results import Arm, Difference, Run, Study
from tinyllm.studies.compare.timing import minutes_trained


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm with what its finished runs have in common."""

    arm: Arm
    style: int
    """Number of its colour, marker and line; the reference has 0."""
    is_reference: bool
    runs: list[Run]
    """All, whatever became of them."""
    finished: list[Run]
    """Those with a value, in order of seed."""
    mean: float | None
    sd: float | None
    """Over the seeds; None: fewer than two."""
    tokens_per_s: float | None
    """The median over the finished runs."""
    peak_memory_bytes: int | None
    """The most that a finished run took."""
    difference: Difference | None
    """None: the reference, or nothing to compare."""

    @property
    def values(self) -> dict[int, float]:
        """The metric by seed."""
        return {run.seed: run.value for run in self.finished if run.value is not None}

    @property
    def minutes(self) -> float | None:
        """Minutes of training of one run, evaluation and saving not counted."""
        return minutes_trained(self.arm.tokens, self.tokens_per_s)

    @property
    def decode_ms(self) -> float | None:
        """Milliseconds for one token, one sequence."""
        return 1000 / self.arm.decode_tokens_per_s if self.arm.decode_tokens_per_s else None


def summaries(study: Study) -> list[ArmSummary]:
    """One for each arm, in the order of the study."""
    order = sorted(range(len(study.arms)), key=lambda place: study.arms[place].name != study.reference)
    differences = {one.arm: one for one in study.differences}
    return [
        _summary(study, arm, style=order.index(place), difference=differences.get(arm.name))
        for place, arm in enumerate(study.arms)
    ]


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
        tokens_per_s=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=max(peaks, default=None),
        difference=difference,
    )


def seed_differences(one: ArmSummary, reference: ArmSummary) -> dict[int, float]:
    """The arm's metric minus the reference's, by seed, where both have finished."""
    return {seed: value - reference.values[seed] for seed, value in one.values.items() if seed in reference.values}
