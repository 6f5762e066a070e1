"""What a comparison found, as plain data: the report is made of it, and ``study.json`` holds it."""

from dataclasses import dataclass, field
from typing import Any

from tinyllm.programs.cost import Account


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the compositions that are compared."""

    name: str
    settings: list[str]
    """What makes it this arm, in Hydra's grammar."""
    overrides: list[str]
    """Everything that a run of it is started with but seed and directory, solved values and horizon included."""
    solved: dict[str, int]
    """The values that the matching chose, by key."""
    account: Account
    mismatch: float | None
    """What is matched, relative to the reference: 0.004 is 0.4 % more. None: nothing is matched."""
    max_steps: int
    tokens: int
    """Training tokens of one run."""
    flops: int
    """Training FLOPs of one run."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Values that were chosen by trials, by key."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """What was tried for them: the keys' values, ``value`` (of the study's ``trial_metric``; None: failed)."""
    decode_tokens_per_s: float | None = None
    """One sequence, greedy; None: not measured."""
    probes: dict[str, float] = field(default_factory=dict)
    """Accuracy by synthetic task, where they were asked for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an arm."""

    arm: str
    seed: int
    path: str
    """Its run directory, relative to the study's."""
    command: str
    status: str
    """finished, failed or missing."""
    error: str = ""
    """The first line of what went wrong."""
    value: float | None = None
    """The metric of the last evaluation; None unless finished."""
    records: list[dict[str, float]] = field(default_factory=list)
    """The records of ``metrics.jsonl`` that hold the metric: step, tokens, flops, seconds, the metric and others."""
    tokens_per_s: float | None = None
    """In training, evaluation and saving left out."""
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the files that the figures come from, by name."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the reference, seed by seed. Negative is less of the metric, which is better."""

    arm: str
    seeds: list[int]
    """Those that both have finished."""
    mean: float
    sd: float | None
    """Of the paired differences; None: fewer than two."""
    low: float | None
    high: float | None
    """95 % interval of the mean (Student's t), not corrected."""
    p: float | None
    """Two-sided paired t test; None: fewer than two pairs, or differences that are not zero and do not spread."""
    p_corrected: float | None
    """Holm, over all arms that have a p-value."""
    detectable: float | None
    """The difference that these seeds show with a power of 0.8 at 5 % over the number of arms compared."""
    seeds_needed: int | None
    """To see ``effect`` with that power at that level, given ``sd``."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a report shows."""

    question: str
    command: str
    metric: str
    """val/bpb, or val/loss where no bytes are known. Less is better."""
    match: str
    match_by: list[str]
    tolerance: float
    budget: str
    """tokens, flops or minutes."""
    amount: float
    """Of the budget, for one run."""
    effect: float
    """The difference that is worth seeing."""
    seeds: list[int]
    seeds_note: str
    """How their number came about."""
    reference: str
    arms: list[Arm]
    runs: list[Run]
    differences: list[Difference]
    verdicts: list[str]
    """One sentence for each arm but the reference, and what limits them."""
    notes: list[str]
    """What else a reader has to know: failed runs, tuning on the validation split."""
    provenance: dict[str, Any]
    """Versions, machine, commit, hashes of code and data."""
    trial_metric: str = "val/loss"
    """What trials are chosen by: the lowest of a trial's evaluations."""
