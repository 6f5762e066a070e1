"""What takes time: how fast each arm is measured to be, how long it was really trained, and what evaluating takes."""

import statistics
from collections.abc import Mapping, Sequence

from tinyllm.config.grammar import key_of
from tinyllm.studies.compare.results import Run

ROUNDS = 3
"""Times that every arm is timed, in turn; the median counts. A machine that is slow for a while is so for one round."""
SHARE = 0.05
"""Of a run's minutes, for one round of an arm."""
SECONDS = (5.0, 60.0)
"""Of one round of an arm, at least and at most."""
OFF = 0.05
"""An arm that was trained for longer or shorter than the median arm by this share is named."""
LONG = 0.5
"""Evaluating that is more than this share of the training is told."""


def seconds_of_a_round(minutes: float) -> float:
    """How long an arm is timed in each round, for runs of so many minutes."""
    least, most = SECONDS
    return min(max(least, 60 * minutes * SHARE), most)


def without_evaluation(settings: Sequence[str], seconds: float) -> list[str]:
    """The settings of a run that is timed: the same training, for so long, and nothing else."""
    short = [f"trainer.max_minutes={seconds / 60:.4g}", "trainer.eval_every=0", "trainer.checkpoint_every=0"]
    dropped = {*(key_of(one) for one in short), "trainer.eval_tokens", "trainer.eval_train_tokens"}
    return [*(one for one in settings if key_of(one) not in dropped), *short]


def minutes_trained(tokens: int, tokens_per_s: float | None) -> float | None:
    """Minutes that so many tokens took, evaluation and saving not counted; None: nobody knows how fast it was."""
    return tokens / tokens_per_s / 60 if tokens_per_s else None


def uneven(runs: Sequence[Run], tokens: Mapping[str, int]) -> list[str]:
    """A note that names the arms which were trained for longer or shorter than the others, or nothing.

    The steps of an arm follow from the speed that was measured before. Where the machine was slower or faster then,
    all seeds of the arm have too few or too many steps, which no statistics over seeds can see.

    Args:
        tokens: that each arm's runs were trained on.
    """
    found: dict[str, float] = {}
    for arm, count in tokens.items():
        speeds = [run.tokens_per_s for run in runs if run.arm == arm and run.tokens_per_s is not None]
        minutes = minutes_trained(count, statistics.median(speeds) if speeds else None)
        if minutes is not None:
            found[arm] = minutes
    usual = statistics.median(found.values()) if found else 0.0
    shares = {arm: minutes / usual - 1 for arm, minutes in found.items()}
    named = [
        f"{arm} {found[arm]:.3g} ({f'{100 * share:+.0f}'.replace('-', '−')} %)"
        for arm, share in shares.items()
        if abs(share) > OFF
    ]
    if not named:
        return []
    return [
        "not all arms were trained for equally many minutes, for some were not as fast as measured before:"
        f" {', '.join(named)}; their differences hold for the tokens they saw, not for equal minutes"
    ]


def long_evaluation(*, evaluations: int, tokens: int, trained: int) -> str | None:
    """A warning before anything trains that evaluating takes long; None: it does not.

    A forward pass is a third of a training step's FLOPs.

    Args:
        evaluations: of a run.
        tokens: of one evaluation.
        trained: tokens of a run.
    """
    share = evaluations * tokens / 3 / trained
    if share <= LONG:
        return None
    less = "evaluations=1 leaves the last one, " if evaluations > 1 else ""
    return (
        f"evaluating takes about {share:.2g} times as long as training: {evaluations} times {tokens:,} tokens in a run;"
        f" {less}trainer.eval_tokens=<number> takes a part of the split"
    )
