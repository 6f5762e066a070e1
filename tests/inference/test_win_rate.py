"""Win rates and their intervals."""

import pytest
from scipy.stats import binomtest

from tinyllm.inference.win_rate import WinRate, wilson, win_rate


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (1, 5), (37, 100), (100, 100), (1, 1)])
def test_the_interval_equals_scipys(wins: int, n: int) -> None:
    theirs = binomtest(wins, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(wins / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_ties_count_half_and_prompts_are_the_trials() -> None:
    found = win_rate([[1.0], [0.0], [2.0], [0.5]], [[0.0], [0.0], [3.0], [0.0]])
    assert found == WinRate(2, 1, 1, 0.625, *wilson(0.625, 4))
    several = win_rate([[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])
    assert several == WinRate(1, 2, 1, 0.5, *wilson(0.5, 2)), "four comparisons, but two prompts"
    mirrored = win_rate([[0.0], [0.0], [3.0], [0.0]], [[1.0], [0.0], [2.0], [0.5]])
    assert (mirrored.rate, mirrored.low, mirrored.high) == pytest.approx((0.375, 1 - found.high, 1 - found.low))
