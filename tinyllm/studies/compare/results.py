"""The results of a comparison as plain data: the source of the report, stored in ``study.json``."""

from dataclasses import dataclass, field
from typing import Any

from tinyllm.programs.cost import ModelCost


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a comparison."""

    name: str
    settings: list[str]
    """The settings that distinguish the arm, in Hydra's grammar."""
    overrides: list[str]
    """All settings of its runs but seed and directory; matched values and horizon included."""
    solved: dict[str, int]
    """Values chosen by the matching, by key."""
    account: ModelCost
    mismatch: float | None
    """The matched figure relative to the reference: 0.004 is 0.4 % more. None: nothing is matched."""
    max_steps: int
    tokens: int
    """Training tokens of one run."""
    flops: int
    """Training FLOPs of one run."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Values chosen by trials, by key."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """The trials: the value of each key, and ``value``, that of the study's ``trial_metric`` (None: failed)."""
    decode_tokens_per_s: float | None = None
    """Greedy decoding of one sequence; None: not measured."""
    probes: dict[str, float] = field(default_factory=dict)
    """Accuracy by synthetic task; empty without ``probes``."""


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
    """First line of the error."""
    value: float | None = None
    """The metric at the last evaluation; None unless finished."""
    records: list[dict[str, float]] = field(default_factory=list)
    """The records of ``metrics.jsonl`` with the metric: step, tokens, flops, seconds, the metric and others."""
    tokens_per_s: float | None = None
    """Training speed, without evaluation and saving."""
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    """Digests of the files that the figures come from, by name."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between an arm and the reference, paired by seed: the arm's value minus the reference's."""

    arm: str
    seeds: list[int]
    """Seeds that have finished in both arms."""
    mean: float
    sd: float | None
    """Standard deviation of the paired differences; None: fewer than two."""
    low: float | None
    high: float | None
    """95 % interval of the mean (Student's t), not corrected for several comparisons."""
    p: float | None
    """Two-sided paired t test; None: fewer than two pairs, or identical differences other than zero."""
    p_corrected: float | None
    """Corrected with Holm's method over all arms that have a p-value."""
    detectable: float | None
    """The smallest difference detected with a power of 0.8, at a level of 5 % divided by the number of comparisons."""
    seeds_needed: int | None
    """Seeds needed to detect ``effect`` with that power at that level, given ``sd``."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that the report shows."""

    question: str
    command: str
    metric: str
    """What the arms are compared by."""
    match: str
    match_by: list[str]
    tolerance: float
    budget: str
    """tokens, flops or minutes."""
    amount: float
    """The budget of one run."""
    effect: float
    """The smallest difference worth detecting."""
    seeds: list[int]
    seeds_note: str
    """How the number of seeds was chosen."""
    reference: str
    arms: list[Arm]
    runs: list[Run]
    differences: list[Difference]
    verdicts: list[str]
    """One sentence per arm other than the reference, then how to read them."""
    notes: list[str]
    """Caveats: failed runs, tuning on the validation split."""
    provenance: dict[str, Any]
    """Versions, machine, commit, digests of code and data."""
    trial_metric: str = "val/loss"
    """The metric that trials are chosen by, at its best evaluation."""
    trial_lower_is_better: bool = True
    lower_is_better: bool = True
    """Which values of ``metric`` are better."""
    evaluation: str = ""
    """The settings of the evaluation that gave the metric after training; empty: the runs logged it."""
