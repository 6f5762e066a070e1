"""The prepared sources of a mixture, and the order in which a run reads them."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from tinyllm.data.batch import WindowSource
from tinyllm.data.chat.packed import PackedConversations
from tinyllm.data.chat.rows import ConversationData, ConversationSplit, left_out_note
from tinyllm.data.interleave import Interleaving, Phase, period_counts
from tinyllm.data.mixture import Change
from tinyllm.data.mixture_order import MixtureOrder
from tinyllm.data.sample_span import SampleSpan
from tinyllm.data.token_data import Split, TokenData
from tinyllm.tokenizers import Tokenizer

SIDES = ("train", "val")
OfSource = TokenData | ConversationData
"""The prepared data of a source."""


@dataclass(frozen=True, kw_only=True)
class MixtureData:
    """The prepared sources of a mixture; a :class:`tinyllm.data.run_data.RunData`.

    Attributes:
        sources: the data by source, all with the same tokenizer.
        tokenizer: that tokenizer.
        weights: at the start of training; None: in proportion to size.
        schedule: later weights.
        notes: remarks for the user.
    """

    sources: Mapping[str, OfSource]
    tokenizer: Tokenizer
    weights: Mapping[str, float] | None
    schedule: list[Change]
    notes: list[str] = field(default_factory=list)

    @property
    def rules(self) -> int:
        """Version of the rules that split the documents."""
        return next(iter(self.sources.values())).rules

    def fingerprints(self) -> dict[str, str]:
        """Those of the splits of each source, ``train.<source>`` and ``val.<source>``; of all together, ``train`` and
        ``val``; and the tokenizer's."""
        found: dict[str, str] = {}
        for side in SIDES:
            parts = {source: split.fingerprint for source, split in self.splits(side).items()}
            found |= {f"{side}.{source}": fingerprint for source, fingerprint in parts.items()}
            whole = " ".join(f"{source}={fingerprint}" for source, fingerprint in parts.items())
            found[side] = hashlib.sha256(whole.encode()).hexdigest()
        return found | {"tokenizer": self.tokenizer.fingerprint()}

    def splits(self, name: str) -> Mapping[str, Split | ConversationSplit]:
        """The split ``train`` or ``val`` of each source."""
        return {source: {"train": data.train, "val": data.val}[name] for source, data in self.sources.items()}

    def shares(self) -> Mapping[str, float]:
        """The weights at the start of training, normalized. The means over sources use them throughout, so that values
        before and after a change of the weights are comparable."""
        weights = self.weights or {name: data.train.n_tokens for name, data in self.sources.items()}
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def changes(self, span: SampleSpan) -> list[int]:
        """The sample at which each change of the weights takes place. One in the past stays where it was, even if the
        horizon or the batch has changed since."""
        found: list[int] = []
        for number, change in enumerate(self.schedule):
            past = span.changes[number] if number < len(span.changes) else None
            if past is not None and past <= span.sample:
                found.append(past)
                continue
            planned = round(change.at * span.total) if change.at < 1 else span.at_step(int(change.at))
            found.append(max([planned, span.sample, *found]))
        return found

    def order(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> WindowSource:
        """Windows of the sources, interleaved by their shares."""
        return MixtureOrder(list(sources.values()), interleaving(self._phases(sources, span)))

    def order_notes(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> list[str]:
        """How often the planned run reads each source."""
        read = interleaving(self._phases(sources, span)).totals(span.total)
        epochs = [
            f"{name} {_times(count / source.windows_per_epoch)}"
            for (name, source), count in zip(sources.items(), read.tolist(), strict=True)
        ]
        left_out = {
            name: left_out_note(source) for name, source in sources.items() if isinstance(source, PackedConversations)
        }
        notes = [f"{name}: {note}" for name, note in left_out.items() if note]
        return [*notes, f"each source is read {', '.join(epochs)} over the whole run"]

    def _phases(self, sources: Mapping[str, WindowSource], span: SampleSpan) -> tuple[Phase, ...]:
        weights = self.weights or {name: source.windows_per_epoch for name, source in sources.items()}
        phases = [Phase(start=0, counts=_counts(weights, sources))]
        for start, change in zip(self.changes(span), self.schedule, strict=True):
            phases.append(Phase(start=start, counts=_counts(change.weights, sources)))
        return tuple(phases)


@cache
def interleaving(phases: tuple[Phase, ...]) -> Interleaving:
    """The order of the sources, made once for all who ask for it."""
    return Interleaving(phases)


def _counts(weights: Mapping[str, float], sources: Mapping[str, WindowSource]) -> tuple[int, ...]:
    return tuple(period_counts([weights[name] for name in sources]))


def _times(epochs: float) -> str:
    return f"{epochs:.2g}×" if epochs < 10 else f"{epochs:,.0f}×"
