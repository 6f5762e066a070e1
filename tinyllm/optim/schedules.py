"""Learning-rate schedules: pure functions of the step, so that resuming needs no state.

With s = step from 0, W = warmup steps, N = horizon and x = (s + 1 − W)/(N − W): during warmup the rate is
lr·(s + 1)/W; then it falls to exactly ``min_lr`` at the last step s = N − 1 (x = 1). With N = 1 the only step has
``lr``.
"""

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """The learning rate of each step.

    Args:
        lr: peak learning rate.
        n_steps: horizon N in optimizer steps.
        warmup_steps: a fraction of N (a float below 1) or a whole number of steps.
        min_lr: learning rate of the last step; None: lr/10 (Hoffmann et al. 2022).

    Raises:
        ValueError: warmup or min_lr is out of range.
    """

    def __init__(self, *, lr: float, n_steps: int, warmup_steps: int | float, min_lr: float | None) -> None:
        self.lr, self.n_steps = lr, n_steps
        self.min_lr = lr / 10 if min_lr is None else min_lr
        self.warmup = steps_of("warmup_steps", warmup_steps, n_steps)
        if self.warmup >= n_steps:
            raise ValueError(
                f"warmup_steps={warmup_steps} leaves no steps after warmup: it must be below the horizon of "
                f"{n_steps} steps"
            )
        if not 0 <= self.min_lr <= lr:
            raise ValueError(f"min_lr={self.min_lr:g} is out of range: it must be between 0 and the peak, {lr:g}")

    def __call__(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        if self.n_steps == 1:  # the only step is also the last one, but should train at the peak
            return self.lr
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step + 1 - self.warmup) / (self.n_steps - self.warmup)
        return self.after_warmup(min(progress, 1.0))  # beyond the horizon the rate stays at min_lr

    @abstractmethod
    def after_warmup(self, x: float) -> float:
        """Learning rate at progress x in (0, 1] after the warmup."""

    def between(self, fraction: float) -> float:
        """Interpolate linearly from min_lr (fraction 0) to the peak (1), exact at both ends."""
        return self.min_lr + (self.lr - self.min_lr) * fraction if fraction else self.min_lr


class Constant(Schedule):
    """The peak learning rate after warmup."""

    def __init__(self, *, lr: float, n_steps: int, warmup_steps: int | float) -> None:
        super().__init__(lr=lr, n_steps=n_steps, warmup_steps=warmup_steps, min_lr=lr)

    def after_warmup(self, x: float) -> float:
        return self.lr


class Cosine(Schedule):
    """Half a cosine period (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts)."""

    def after_warmup(self, x: float) -> float:
        return self.between(0.5 * (1 + math.cos(math.pi * x)) if x < 1 else 0.0)


class Linear(Schedule):
    """Linear decay."""

    def after_warmup(self, x: float) -> float:
        return self.between(1 - x)


# 1 − √x falls fastest at first; it ended lowest in Hägele et al. 2024 (https://arxiv.org/abs/2405.18392).
SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)) if x < 1 else 0.0,
    "sqrt": lambda x: 1 - math.sqrt(x),
}


class WSD(Schedule):
    """Warmup, stable, decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395).

    Args:
        decay_steps: length of the decay, a fraction of the horizon or a whole number of steps; None: 0.2.
        stable_steps: steps at the peak, as an alternative to ``decay_steps``; the decay takes the rest.
        shape: shape of the decay: ``linear``, ``cosine`` or ``sqrt`` (1 − √x).

    Raises:
        ValueError: the decay has no steps or does not fit into the horizon.
    """

    def __init__(
        self,
        *,
        lr: float,
        n_steps: int,
        warmup_steps: int | float,
        min_lr: float | None,
        decay_steps: int | float | None,
        stable_steps: int | None,
        shape: str,
    ) -> None:
        super().__init__(lr=lr, n_steps=n_steps, warmup_steps=warmup_steps, min_lr=min_lr)
        if shape not in SHAPES:
            raise ValueError(f"shape={shape} is not known: one of {', '.join(SHAPES)}")
        self.shape = SHAPES[shape]
        if stable_steps is None:
            decay_steps = 0.2 if decay_steps is None else decay_steps
            self.decay = steps_of("decay_steps", decay_steps, n_steps)
            if is_fraction(warmup_steps) and is_fraction(decay_steps) and warmup_steps + decay_steps < 1 + 1e-9:
                # the fractions fit into the horizon, but both may have been rounded up
                self.decay = min(self.decay, n_steps - self.warmup)
            given = f"decay_steps={decay_steps}"
        elif decay_steps is not None:
            raise ValueError(
                f"stable_steps={stable_steps} and decay_steps={decay_steps} are alternatives: set only one of them"
            )
        else:
            if stable_steps < 0:
                raise ValueError(f"stable_steps={stable_steps} is negative: it must be at least 0")
            self.decay = n_steps - self.warmup - stable_steps
            given = f"stable_steps={stable_steps}"
        if self.decay < 1:
            raise ValueError(
                f"{given} leaves no steps for the decay: warmup takes {self.warmup} of {n_steps} steps, "
                "and the decay needs at least 1"
            )
        if self.warmup + self.decay > n_steps:
            raise ValueError(f"{given} does not fit: warmup takes {self.warmup} of {n_steps} steps")

    def after_warmup(self, x: float) -> float:
        done = round(x * (self.n_steps - self.warmup)) - (self.n_steps - self.warmup - self.decay)
        return self.lr if done <= 0 else self.between(self.shape(done / self.decay))


def is_fraction(value: float) -> bool:
    """Whether a number of steps is a fraction of the horizon."""
    return isinstance(value, float) and value < 1


def steps_of(name: str, value: int | float, n_steps: int) -> int:
    """Convert to steps a whole number of steps or a fraction of the horizon (a float below 1).

    Raises:
        ValueError: it is negative, or a float that is neither a fraction nor whole.
    """
    if value < 0:
        raise ValueError(f"{name}={value} is negative: it must be a fraction of the horizon or a whole number of steps")
    if is_fraction(value):
        return round(value * n_steps)
    if int(value) != value:
        raise ValueError(f"{name}={value} is neither a fraction below 1 nor a whole number of steps")
    return int(value)
