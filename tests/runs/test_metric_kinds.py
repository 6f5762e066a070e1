"""What is known about metrics by their names."""

import pytest

from tinyllm.errors import UserError
from tinyllm.runs.metric_kinds import chosen_metric, metric_kind
from tinyllm.training.objectives.grpo import GRPO
from tinyllm.training.objectives.next_token import NextToken


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("val/loss", True),
        ("val/bpb", True),
        ("val/code/loss", True),
        ("val/reward", False),
        ("rl/reward_exact", False),
        ("val/pref/accuracy", False),
        ("task/exact", False),
        ("task/arithmetic/exact", False),
        ("task/words/pass@8", False),
        ("win/rate", False),
        ("speed/tokens_per_s", False),
    ],
)
def test_directions(name: str, lower: bool) -> None:
    kind = metric_kind(name)
    assert kind is not None and kind.lower_is_better is lower and kind.effect > 0 and kind.short_unit


def test_what_objectives_select_by_is_known() -> None:
    for objective in (NextToken, GRPO):
        kind = metric_kind(objective.selects)
        assert kind is not None and kind.lower_is_better is objective.lower_is_better


def test_an_unknown_metric_needs_a_direction() -> None:
    assert metric_kind("task/words/tokens") is None
    with pytest.raises(UserError, match=r"nothing is known about the metric \(metric=task/words/tokens\)"):
        chosen_metric("task/words/tokens", direction=None)
    assert chosen_metric("task/words/tokens", direction="lower").lower_is_better
    assert not chosen_metric("val/loss", direction="higher").lower_is_better
