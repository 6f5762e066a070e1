"""Sequence-length curriculum: short sequences first, so that early steps cost less.

Li et al. 2021, https://arxiv.org/abs/2108.06084.
"""

from dataclasses import dataclass

from tinyllm.errors import UserError

MULTIPLE = 8
"""Lengths of the ramp are multiples of this: kernels run faster, and a compiler meets fewer lengths."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Sequence length of step s: start + (seq_len − start)·s/steps, rounded down to a multiple of 8.

    From step ``full_from`` on it is seq_len, a multiple of 8 or not. The length is a pure function of the step, so
    there is no state to save or to restore.
    """

    seq_len: int
    start: int = 0
    steps: int = 0
    """Steps of the ramp; 0: no ramp."""
    shift: int = 0
    """First step of the ramp; see :class:`tinyllm.training.batch_plan.Horizon`."""

    @property
    def full_from(self) -> int:
        """The first step with full-length sequences."""
        return self.steps + self.shift

    def at(self, step: int) -> int:
        """Sequence length of a step."""
        step -= self.shift
        if step >= self.steps:
            return self.seq_len
        return _rounded(self.start + (self.seq_len - self.start) * step // self.steps)

    def total(self, n_steps: int) -> int:
        """Sum of the lengths of the first ``n_steps`` steps of the ramp and beyond."""
        ramp = min(n_steps, self.steps)
        tokens = (n_steps - ramp) * self.seq_len
        for length, first, stop in self._stretches():
            tokens += length * max(0, min(stop, ramp) - first)
        return tokens

    def distinct(self, step: int = 0) -> list[int]:
        """The different lengths from ``step`` on, ascending."""
        return sorted({length for length, _, stop in self._stretches() if stop + self.shift > step} | {self.seq_len})

    def _stretches(self) -> list[tuple[int, int, int]]:
        """The lengths of the ramp: (length, first step, step after the last)."""
        stretches, step = [], 0
        while step < self.steps:
            length = self.at(step + self.shift)
            # length + 8 is reached once (seq_len − start)·s/steps ≥ length + 8 − start
            rise = (length + MULTIPLE - self.start) * self.steps
            stop = min(self.steps, -(-rise // (self.seq_len - self.start)))
            stretches.append((length, step, stop))
            step = stop
        return stretches


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """The settings of ``curriculum.*``, before the horizon is known.

    Args:
        enabled: if false, every sequence has ``seq_len`` tokens.
        start_seq_len: length at step 0; None: an eighth of ``seq_len``, at least 8.
        steps: steps until ``seq_len`` is reached; None: half of the horizon.
        seq_len: length after the ramp.

    Raises:
        UserError: ``seq_len`` is too short for a ramp, or ``start_seq_len`` is out of range.
    """

    enabled: bool
    start_seq_len: int | None
    steps: int | None
    seq_len: int

    def __post_init__(self) -> None:
        if not self.enabled:
            return
        if self.seq_len <= MULTIPLE:
            raise UserError(
                "no shorter sequences to start with",
                key="curriculum.enabled",
                value=True,
                hint=f"trainer.seq_len={self.seq_len} must be above {MULTIPLE}",
            )
        if not MULTIPLE <= self._start < self.seq_len:
            raise UserError(
                "out of range",
                key="curriculum.start_seq_len",
                value=self.start_seq_len,
                hint=f"from {MULTIPLE} to {self.seq_len - 1}, below trainer.seq_len",
            )

    def lengths(self, n_steps: int, *, shift: int = 0) -> Lengths:
        """The lengths over a horizon, which may be shorter than the ramp."""
        if not self.enabled:
            return Lengths(seq_len=self.seq_len)
        return Lengths(seq_len=self.seq_len, start=self._start, steps=self.steps or n_steps // 2, shift=shift)

    def check(self, n_steps: int) -> None:
        """Refuse a ramp that is longer than the run.

        Raises:
            UserError: the ramp is longer.
        """
        if self.enabled and self.steps is not None and self.steps > n_steps:
            raise UserError(
                "longer than the run",
                key="curriculum.steps",
                value=self.steps,
                hint=f"at most the horizon of {n_steps} steps",
            )

    @property
    def _start(self) -> int:
        return max(MULTIPLE, _rounded(self.seq_len // 8)) if self.start_seq_len is None else self.start_seq_len


def _rounded(length: int) -> int:
    return length // MULTIPLE * MULTIPLE
