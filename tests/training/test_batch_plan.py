"""Batch plan and horizon, against closed forms."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import UserError
from tinyllm.training.batch_plan import BatchPlan, parse_tokens, plan_batch, plan_steps
from tinyllm.training.curriculum import Curriculum

SIZES = st.integers(1, 64)


@given(batch_size=SIZES, accum=SIZES, seq_len=SIZES, world_size=st.integers(1, 8))
def test_total_batch_tokens_and_grad_accum_steps_give_the_same_batch(
    batch_size: int, accum: int, seq_len: int, world_size: int
) -> None:
    tokens = batch_size * accum * seq_len * world_size
    shape = {"batch_size": batch_size, "seq_len": seq_len, "max_seq_len": 64, "world_size": world_size}
    by_steps = plan_batch(**shape, grad_accum_steps=accum, total_batch_tokens=None)
    by_tokens = plan_batch(**shape, grad_accum_steps=None, total_batch_tokens=str(tokens))
    assert by_steps == by_tokens
    assert (by_steps.tokens, by_steps.sequences) == (tokens, batch_size * accum * world_size)


@given(batch_size=SIZES, seq_len=SIZES, tokens=st.integers(1, 10**6))
def test_total_batch_tokens_that_do_not_divide_are_refused_with_the_nearest(
    batch_size: int, seq_len: int, tokens: int
) -> None:
    micro = batch_size * seq_len
    settings = {"batch_size": batch_size, "grad_accum_steps": None, "seq_len": seq_len, "world_size": 1}
    if tokens % micro == 0:
        batch = plan_batch(**settings, max_seq_len=seq_len, total_batch_tokens=tokens)
        assert batch.grad_accum_steps == tokens // micro
        return
    with pytest.raises(UserError) as refused:
        plan_batch(**settings, max_seq_len=seq_len, total_batch_tokens=tokens)
    nearest = [int(one) for one in re.findall(r"\d+", refused.value.hint.partition("nearest:")[2])]
    legal = [k * micro for k in range(1, tokens // micro + 2)]
    assert nearest == [one for one in legal if abs(one - tokens) < micro]


def test_defaults_of_the_batch() -> None:
    batch = plan_batch(
        batch_size=8,
        grad_accum_steps=None,
        total_batch_tokens=None,
        seq_len=None,
        max_seq_len=32,
        world_size=2,
    )
    assert batch == BatchPlan(batch_size=8, grad_accum_steps=1, seq_len=32, world_size=2)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [(1, 1), (512, 512), ("512", 512), ("2**19", 2**19), ("2 ** 19", 2**19), (" 10**6 ", 10**6), ("3**1", 3)],
)
def test_token_counts_are_parsed(text: int | str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["", "0", 0, -1, "-5", "2**-1", "2**2**2", "1e-6", "10k", "9**99", 1.5, "2*3", "x", True, "2**", "**2", "2**100000",
     "0**3", "__import__('os')", "2^19", "²"],
)  # fmt: skip
def test_invalid_token_counts_are_refused(text: object) -> None:
    with pytest.raises(UserError, match=r"not a number of tokens \(trainer.total_batch_tokens=") as refused:
        parse_tokens(text)  # type: ignore[arg-type]
    assert "2**19" in refused.value.hint


BATCH = BatchPlan(batch_size=4, grad_accum_steps=2, seq_len=16, world_size=1)
NONE = {"max_steps": None, "max_tokens": None, "max_epochs": None}
OFF = Curriculum(enabled=False, start_seq_len=None, steps=None, seq_len=16)


@given(tokens=st.integers(128, 10**7))
def test_a_horizon_in_tokens_is_floored(tokens: int) -> None:
    steps = plan_steps(BATCH, **NONE | {"max_tokens": tokens}, epoch_tokens=0, curriculum=OFF)
    assert steps * 128 <= tokens < (steps + 1) * 128


@given(epochs=st.floats(0.5, 50), epoch_tokens=st.integers(256, 10**6))
def test_a_horizon_in_epochs_is_floored(epochs: float, epoch_tokens: int) -> None:
    steps = plan_steps(BATCH, **NONE | {"max_epochs": epochs}, epoch_tokens=epoch_tokens, curriculum=OFF)
    assert steps == int(epochs * epoch_tokens) // 128


def test_horizons_in_steps_and_by_default() -> None:
    assert plan_steps(BATCH, **NONE, epoch_tokens=0, curriculum=OFF) == 2000
    assert plan_steps(BATCH, **NONE | {"max_steps": 7}, epoch_tokens=0, curriculum=OFF) == 7


@pytest.mark.parametrize(
    ("horizon", "said"),
    [
        ({"max_tokens": 127}, "trainer.max_tokens=127): one step takes 128"),
        (
            {"max_epochs": 0.1},
            "trainer.max_epochs=0.1): that is 100 of the 1000 tokens of an epoch, one step",
        ),
        (
            {"max_steps": 3, "max_tokens": 128},
            "trainer.max_tokens=128): give this or trainer.max_steps=3, not both",
        ),
        (
            {"max_tokens": 128, "max_epochs": 1},
            "trainer.max_epochs=1): give this or trainer.max_tokens=128, not",
        ),
    ],
)
def test_impossible_horizons_are_refused(horizon: dict[str, float], said: str) -> None:
    with pytest.raises(UserError) as refused:
        plan_steps(BATCH, **NONE | horizon, epoch_tokens=1000, curriculum=OFF)
    assert said in str(refused.value)
