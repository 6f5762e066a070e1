"""Each schedule against its closed form."""

import math

import pytest

from tinyllm.optim.schedules import WSD, Constant, Cosine, Linear, Schedule, steps_of

LR, N, W = 3e-3, 50, 10
AUTO = {"min_lr": None}
COMMON = {"lr": LR, "n_steps": N, "warmup_steps": W}


def progress(step: int) -> float:
    return (step + 1 - W) / (N - W)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(**COMMON),
        Cosine(**COMMON, min_lr=None),
        Linear(**COMMON, min_lr=None),
        WSD(**COMMON, min_lr=None, decay_steps=None, stable_steps=None, shape="linear"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_warmup_rises_in_equal_steps_from_above_zero_to_the_peak(schedule: Schedule) -> None:
    assert [schedule(s) for s in range(W)] == pytest.approx([LR * (s + 1) / W for s in range(W)])
    assert schedule(W - 1) == LR


def test_cosine_is_half_a_cosine_that_ends_exactly_at_min_lr() -> None:
    schedule = Cosine(**COMMON, min_lr=1e-4)
    for step in range(W, N):
        expected = 1e-4 + (LR - 1e-4) * (1 + math.cos(math.pi * progress(step))) / 2
        assert schedule(step) == pytest.approx(expected, rel=1e-12)
    assert schedule(N - 1) == 1e-4


def test_linear_ends_exactly_at_a_tenth_of_the_peak_by_default() -> None:
    schedule = Linear(**COMMON, min_lr=None)
    assert [schedule(s) for s in range(W, N)] == pytest.approx(
        [LR / 10 + (LR - LR / 10) * (1 - progress(s)) for s in range(W, N)]
    )
    assert schedule(N - 1) == LR / 10


@pytest.mark.parametrize(
    ("shape", "curve"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("sqrt", lambda x: 1 - math.sqrt(x)),
    ],
)
@pytest.mark.parametrize("given", [{"decay_steps": 0.2}, {"decay_steps": 10}, {"stable_steps": 30}])
def test_wsd_is_flat_and_then_falls_to_min_lr(shape: str, curve: object, given: dict[str, float]) -> None:
    schedule = WSD(**COMMON, min_lr=0.0, shape=shape, **{"decay_steps": None, "stable_steps": None} | given)
    assert [schedule(s) for s in range(W, N - 10)] == [LR] * 30
    falling = [schedule(s) for s in range(N - 10, N)]
    assert falling == pytest.approx([LR * curve((k + 1) / 10) for k in range(10)], abs=1e-18)  # type: ignore[operator]
    assert schedule(N - 1) == 0.0


def test_constant_without_warmup_is_the_peak_from_the_first_step() -> None:
    assert {Constant(lr=LR, n_steps=N, warmup_steps=0)(s) for s in range(N)} == {LR}


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        (Cosine, {"warmup_steps": 50, "min_lr": None}, "warmup_steps=50"),
        (Cosine, {"warmup_steps": 80, "min_lr": None}, "warmup_steps=80"),
        (Cosine, {"warmup_steps": -1, "min_lr": None}, "negative"),
        (Cosine, {"warmup_steps": 1.5, "min_lr": None}, "neither"),
        (Linear, {"warmup_steps": 0, "min_lr": 1.0}, "min_lr=1"),
        (Linear, {"warmup_steps": 0, "min_lr": -1e-5}, "min_lr=-1e-05"),
        (WSD, {"warmup_steps": 10, **AUTO, "decay_steps": None, "stable_steps": 40, "shape": "sqrt"}, "stable_steps=40"),  # noqa: E501
        (WSD, {"warmup_steps": 10, **AUTO, "decay_steps": 0, "stable_steps": None, "shape": "linear"}, "decay_steps=0"),
        (WSD, {"warmup_steps": 10, **AUTO, "decay_steps": 45, "stable_steps": None, "shape": "linear"}, "decay_steps=45"),  # noqa: E501
        (WSD, {"warmup_steps": 10, **AUTO, "decay_steps": 5, "stable_steps": 5, "shape": "linear"}, "are alternatives"),
        (WSD, {"warmup_steps": 10, **AUTO, "decay_steps": 5, "stable_steps": None, "shape": "sin"}, "shape=sin"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_horizon_are_refused(kind: type, options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        kind(lr=LR, n_steps=N, **options)


def test_steps_are_a_fraction_or_a_whole_number() -> None:
    assert steps_of("warmup_steps", 0.1, 2000) == 200
    assert steps_of("warmup_steps", 100, 2000) == 100
    assert steps_of("warmup_steps", 1.0, 2000) == 1


def test_fractions_that_fill_the_horizon_always_fit() -> None:
    """Each is rounded separately: 1 % and 99 % of 290 steps are both rounded up."""
    for n_steps in (10, 290, 333):
        for hundredths in range(1, 100):
            warmup, decay = hundredths / 100, 1 - hundredths / 100
            if round(warmup * n_steps) in (0, n_steps) or round(decay * n_steps) == 0:
                continue
            settings = {"min_lr": None, "stable_steps": None, "shape": "linear"}
            schedule = WSD(lr=1.0, n_steps=n_steps, warmup_steps=warmup, decay_steps=decay, **settings)
            assert schedule(n_steps - 1) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="does not fit"):
        WSD(lr=1.0, n_steps=100, warmup_steps=0.5, decay_steps=0.51, **settings)


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_the_only_step_of_a_run_trains_at_the_peak(kind: type[Cosine]) -> None:
    assert kind(lr=0.5, n_steps=1, warmup_steps=0.1, min_lr=None)(0) == 0.5
    assert kind(lr=0.5, n_steps=2, warmup_steps=0.1, min_lr=None)(1) == pytest.approx(0.05)
