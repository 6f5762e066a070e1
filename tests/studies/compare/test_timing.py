"""Time: the length of timing rounds, notes about unequal training times, warnings about long evaluations."""

import pytest

from tests.support.made_study import run
from tinyllm.studies.compare.timing import (
    evaluation_warning,
    minutes_trained,
    round_seconds,
    timing_settings,
    uneven_notes,
)


@pytest.mark.parametrize(("minutes", "seconds"), [(0.5, 5.0), (10, 30.0), (600, 60.0)])
def test_a_round_is_5_percent_of_a_run_within_limits(minutes: float, seconds: float) -> None:
    assert round_seconds(minutes) == seconds


def test_timing_runs_train_the_same_without_evaluation() -> None:
    given = ["attn=mla", "trainer.eval_every=10", "trainer.max_steps=5", "trainer.eval_tokens=7"]
    assert timing_settings(given, 6.0) == [
        "attn=mla", "trainer.max_steps=5",
        "trainer.max_minutes=0.1", "trainer.eval_every=0", "trainer.checkpoint_every=0",
    ]  # fmt: skip


def test_minutes_follow_from_the_training_speed() -> None:
    assert minutes_trained(6_000, 200.0) == 0.5
    assert minutes_trained(6_000, None) is None


def test_arms_with_unequal_training_times_are_named() -> None:
    """30,000 tokens at 1,000 tokens/s take half a minute; the median of the seeds counts."""
    speeds = {"even": [1000.0, 1040.0, 100.0], "slow": [800.0, 790.0, 1000.0], "quick-er": [1100.0], "lost": [None]}
    runs = [run(arm, 0, seed, tokens_per_s=one) for arm, them in speeds.items() for seed, one in enumerate(them)]
    tokens = dict.fromkeys(speeds, 30_000)
    [note] = uneven_notes(runs, tokens)
    assert "slow 0.625 (+25 %), quick-er 0.455 (−9 %);" in note and "even" not in note and "lost" not in note
    assert uneven_notes([one for one in runs if one.arm == "even"], tokens) == []


def test_long_evaluation_is_warned_about() -> None:
    """Evaluating 300 tokens takes as long as training on 100."""
    assert evaluation_warning(evaluations=1, tokens=300, trained=200) is None
    warning = evaluation_warning(evaluations=10, tokens=300, trained=200)
    assert (
        warning is not None
        and "5 times as long as training: 10 times 300 tokens" in warning
        and "evaluations=1" in warning
    )
    once = evaluation_warning(evaluations=1, tokens=900, trained=200)
    assert once is not None and "1.5 times" in once and "evaluations=1" not in once
