"""Mixtures: several data sets in one run, each with a share of the training tokens."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tinyllm.config.suggestions import near
from tinyllm.data.batch import WindowSource
from tinyllm.data.mixture_order import MixtureOrder, Phase
from tinyllm.data.token_data import Split, TokenData
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
TOTALS = ("loss", "ppl", "bpb")
"""Names that would be confused with the metrics of the whole mixture."""


class Mixture:
    """A mixture of data sets; the arguments are the keys of ``conf/dataset/mixture.yaml``.

    Args:
        sources: the data sets by name.
        weights: share of each in the training tokens, not necessarily summing to 1; None: in proportion to size.
        schedule: changes of the weights, each ``{at, weights}``: a fraction of the horizon below 1, or a step.

    Raises:
        UserError: weights that are negative, all 0 or do not fit the sources; a schedule that does not rise.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Any],
        weights: Mapping[str, float] | None,
        schedule: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        if not sources:
            raise UserError("no sources", key="dataset.sources", value={}, hint="name at least one data set")
        for name, corpus in sources.items():
            check_name(name)
            if isinstance(corpus, Mixture):
                hint = "mixtures do not nest; name its sources here"
                raise UserError("a source is a mixture", key=f"dataset.sources.{name}", value="mixture", hint=hint)
        self.sources = dict(sources)
        self.weights = None if weights is None else _checked(weights, self.sources, "dataset.weights")
        self.schedule = _checked_schedule(schedule or [], self.sources)

    def check(self) -> None:
        """Refuse sources that cannot be read.

        Raises:
            UserError: with the name of the source.
        """
        for name, corpus in self.sources.items():
            try:
                corpus.check()
            except UserError as error:
                raise in_source(name, error) from error


def check_name(name: Any) -> None:
    """Refuse a name of a source that metrics and the command line could not use.

    Raises:
        UserError: it is no identifier, or the name of a metric.
    """
    if not NAME.fullmatch(str(name)) or name in TOTALS:
        hint = f"use letters, digits and _, not starting with a digit, and none of {', '.join(TOTALS)}"
        raise UserError("invalid name of a source", key="dataset.sources", value=name, hint=hint)


def in_source(name: str, error: UserError) -> UserError:
    """The error with the name of its source."""
    hint = f"source {name}: {error.hint}" if error.hint else f"source {name}"
    return UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint)


def _checked(weights: Any, sources: Mapping[str, Any], key: str) -> dict[str, float]:
    """One weight per source, in the order of the sources."""
    known = ", ".join(sources)
    if not isinstance(weights, Mapping):
        raise UserError("wrong type", key=key, value=weights, hint=f"a weight for each of {known}")
    for name, weight in weights.items():
        if name not in sources:
            similar = near(str(name), list(sources))
            hint = f"the sources are {known}" + (f"; did you mean {similar[0]}?" if similar else "")
            raise UserError("no such source", key=key, value=name, hint=hint)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise UserError("not a weight", key=f"{key}.{name}", value=weight, hint="a number of at least 0")
    missing = [name for name in sources if name not in weights]
    if missing:
        hint = f"give each source one (0: not used), or leave out {key.rpartition('.')[2]}"
        raise UserError("a source has no weight", key=key, value=missing[0], hint=hint)
    if not any(weights.values()):
        raise UserError("all weights are 0", key=key, value=dict(weights), hint="at least one must be above 0")
    return {name: float(weights[name]) for name in sources}


def _checked_schedule(schedule: Sequence[Any], sources: Mapping[str, Any]) -> list[tuple[float, dict[str, float]]]:
    changes = []
    for index, change in enumerate(schedule):
        key = f"dataset.schedule[{index}]"
        if not isinstance(change, Mapping) or set(change) != {"at", "weights"}:
            raise UserError("wrong type", key=key, value=change, hint="write {at:0.8,weights:{…}}")
        at = change["at"]
        number = isinstance(at, int | float) and not isinstance(at, bool)
        if not number or at <= 0 or (at >= 1 and at != int(at)):
            hint = "a fraction of the horizon between 0 and 1, or a step (a whole number from 1 on)"
            raise UserError("value out of range", key=f"{key}.at", value=at, hint=hint)
        changes.append((at, _checked(change["weights"], sources, f"{key}.weights")))
    for (before, _), (at, _) in pairwise(changes):
        if (before < 1) != (at < 1):
            hint = "write either fractions of the horizon or steps"
            raise UserError("fractions and steps are mixed", key="dataset.schedule", value=f"{before}, {at}", hint=hint)
        if at <= before:
            hint = "each change must come after the one before"
            raise UserError("the schedule does not rise", key="dataset.schedule", value=f"{before}, {at}", hint=hint)
    return changes


@dataclass(frozen=True)
class MixtureData:
    """The prepared sources of a mixture; a :class:`tinyllm.data.run_data.RunData`.

    Attributes:
        sources: the data by source, all of the same tokenizer.
        tokenizer: that tokenizer.
        weights: of the start; None: in proportion to size.
        schedule: the later weights, with the fraction of the horizon or the step at which each starts.
        notes: remarks for the user.
    """

    sources: dict[str, TokenData]
    tokenizer: Tokenizer
    weights: dict[str, float] | None
    schedule: list[tuple[float, dict[str, float]]]
    notes: list[str] = field(default_factory=list)

    @property
    def rules(self) -> int:
        """Version of the rules that split the documents."""
        return next(iter(self.sources.values())).rules

    def fingerprints(self) -> dict[str, str]:
        """Those of each source as ``train.<source>`` and ``val.<source>``, and the tokenizer's."""
        found = {
            f"{name}.{source}": getattr(data, name).fingerprint
            for name in ("train", "val")
            for source, data in self.sources.items()
        }
        return found | {"tokenizer": self.tokenizer.fingerprint()}

    def splits(self, name: str) -> Mapping[str, Split]:
        """The split ``train`` or ``val`` of each source."""
        return {source: {"train": data.train, "val": data.val}[name] for source, data in self.sources.items()}

    def shares(self) -> Mapping[str, float]:
        """The weights at the start of training, normalized. The means over sources use them throughout, so that values
        before and after a change of the schedule are comparable."""
        weights = self.weights or {name: data.train.n_tokens for name, data in self.sources.items()}
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def order(self, sources: Mapping[str, WindowSource], *, n_samples: int, samples_per_step: int) -> WindowSource:
        """Windows of the sources, interleaved by their shares."""
        weights = self.weights or {name: float(source.windows_per_epoch) for name, source in sources.items()}
        phases = [Phase(start=0, weights=tuple(weights[name] for name in sources))]
        for at, later in self.schedule:
            start = round(at * n_samples) if at < 1 else int(at) * samples_per_step
            phases.append(Phase(start=start, weights=tuple(later[name] for name in sources)))
        return MixtureOrder(list(sources.values()), phases)

    def order_notes(self, sources: Mapping[str, WindowSource], *, n_samples: int, samples_per_step: int) -> list[str]:
        """How many epochs of each source the planned run reads."""
        order = self.order(sources, n_samples=n_samples, samples_per_step=samples_per_step)
        assert isinstance(order, MixtureOrder)
        read = order.totals(n_samples)
        epochs = [
            f"{name} {count / source.windows_per_epoch:.2g}×"
            for (name, source), count in zip(sources.items(), read.tolist(), strict=True)
        ]
        return [f"epochs of each source: {', '.join(epochs)}"]
