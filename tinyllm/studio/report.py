"""What a check of settings says: passed between the process that checks and the pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why the settings cannot run, in the words of the command line."""

    text: str
    key: str = ""
    """The key or group that is wrong; "" if it is none in particular."""

    def beside(self, key: str, settings: Mapping[str, str]) -> str:
        """The text if it belongs beside a key: the key is wrong, or was set and is named in the text; else ""."""
        named = key in settings and f"{key.rpartition('.')[2]}={settings[key]}" in self.text
        return self.text if key == self.key or named else ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What decides how fast a run of some size trains on a machine."""

    objective: str
    """The chosen option."""
    precision: str
    """fp32, bf16 or fp16."""
    device: str
    ranks: int = 1


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run would cost. None: not known before the data is prepared."""

    parameters: int
    active_parameters: int
    flops_per_token: int
    memory_bytes: int
    """Weights, gradients, optimizer state and activations of one micro-step on one rank."""
    cache_bytes_per_token: int
    """Of one sequence, in bf16."""
    context: int
    vocabulary: int
    tokens_per_step: int
    work: Work | None = None
    """None: the settings are wrong."""
    steps: int | None = None
    tokens: int | None = None
    """Of all planned steps."""
    epochs: float | None = None
    train_tokens: int | None = None

    @property
    def flops(self) -> int | None:
        """Of the whole run."""
        return None if self.tokens is None else self.tokens * self.flops_per_token


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found."""

    problem: Problem | None = None
    values: dict[str, str] = field(default_factory=dict)
    """The value of every key, as it would be typed; empty if the settings do not compose."""
    choices: dict[str, str] = field(default_factory=dict)
    """The chosen option of each group; several as ``[a,b]``."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """The values of the keys that allow certain words only."""
    figures: Figures | None = None
    notes: list[str] = field(default_factory=list)
