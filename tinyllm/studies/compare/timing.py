"""Time in a comparison: how arms are timed, how long they trained, and what evaluation takes."""

from collections.abc import Mapping, Sequence
from statistics import median

from tinyllm.config.grammar import key_of
from tinyllm.studies.compare.results import Run

ROUNDS = 3
"""Times that each arm is timed, in turn; the median counts. A temporary slowdown of the machine affects one round."""
SHARE = 0.05
"""Length of a round as a share of a run."""
SECONDS = (5.0, 60.0)
"""Shortest and longest round."""
UNEVEN = 0.05
"""An arm is reported when its training time differs from the median arm's by more than this share."""
LONG = 0.5
"""A warning is printed when evaluation takes more than this share of the training time."""


def round_seconds(minutes: float) -> float:
    """The length of a timing round, for runs of this many minutes."""
    shortest, longest = SECONDS
    return min(max(shortest, 60 * minutes * SHARE), longest)


def timing_settings(settings: Sequence[str], seconds: float) -> list[str]:
    """The settings of a timing run: the same training for a few seconds, without evaluation and saving."""
    short = [f"trainer.max_minutes={seconds / 60:.4g}", "trainer.eval_every=0", "trainer.checkpoint_every=0"]
    dropped = {*map(key_of, short), "trainer.eval_tokens", "trainer.eval_train_tokens"}
    return [*(setting for setting in settings if key_of(setting) not in dropped), *short]


def minutes_trained(tokens: int, tokens_per_s: float | None) -> float | None:
    """Minutes of training, without evaluation and saving; None if the speed is unknown."""
    return tokens / tokens_per_s / 60 if tokens_per_s else None


def uneven_notes(runs: Sequence[Run], tokens: Mapping[str, int]) -> list[str]:
    """A note that names the arms that trained longer or shorter than the others; empty if there are none.

    The number of steps follows from the measured speed. If the machine was slower or faster during that measurement,
    all seeds of the arm have too few or too many steps, an error that no statistics over seeds can detect.

    Args:
        tokens: training tokens per run of each arm.
    """
    minutes: dict[str, float] = {}
    for arm, count in tokens.items():
        speeds = [run.tokens_per_s for run in runs if run.arm == arm and run.tokens_per_s is not None]
        trained = minutes_trained(count, median(speeds) if speeds else None)
        if trained is not None:
            minutes[arm] = trained
    usual = median(minutes.values()) if minutes else 0.0
    shares = {arm: trained / usual - 1 for arm, trained in minutes.items()}
    named = [
        f"{arm} {minutes[arm]:.3g} ({f'{100 * share:+.0f}'.replace('-', '−')} %)"
        for arm, share in shares.items()
        if abs(share) > UNEVEN
    ]
    if not named:
        return []
    return [
        "not all arms trained for the same number of minutes, because their speed differed from the measured one:"
        f" {', '.join(named)}; their differences hold for the tokens they saw, not for equal minutes"
    ]


def evaluation_warning(*, evaluations: int, tokens: int, trained: int) -> str | None:
    """A warning that evaluation will take long; None if it will not.

    A forward pass is a third of a training step's FLOPs.

    Args:
        evaluations: evaluations per run.
        tokens: tokens per evaluation.
        trained: training tokens per run.
    """
    share = evaluations * tokens / 3 / trained
    if share <= LONG:
        return None
    fewer = "evaluations=1 keeps only the last one, " if evaluations > 1 else ""
    return (
        f"evaluation will take about {share:.2g} times as long as training: {evaluations} times {tokens:,} tokens per"
        f" run; {fewer}trainer.eval_tokens=<number> evaluates a part of the split"
    )
