"""Mixtures: several data sets in one run, each with a share of the training tokens."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from tinyllm.config.suggestions import near
from tinyllm.data.batch import TOKENS
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.packed_windows import BEST_FIT
from tinyllm.errors import UserError

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
TOTALS = ("loss", "ppl", "bpb")
"""Names that would be confused with the metrics of the whole mixture."""


class Change(NamedTuple):
    """Other weights from some point of the training on.

    Attributes:
        at: fraction of the horizon below 1, or a step from 1 on.
        weights: of each source.
    """

    at: float
    weights: dict[str, float]


class Mixture:
    """A mixture of data sets; the arguments are the keys of ``conf/dataset/mixture.yaml``.

    Args:
        sources: the data sets by name.
        weights: share of each in the training tokens, not necessarily summing to 1; None: in proportion to size.
        schedule: changes of the weights, each ``{at, weights}``: a fraction of the horizon below 1, or a step.

    Raises:
        UserError: weights that are negative, all 0 or do not fit the sources; a schedule that does not rise.
    """

    gives: ClassVar[str] = TOKENS

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
            if getattr(corpus, "start_early", False):
                key, hint = f"dataset.sources.{name}.start_early", "a mixture is prepared first; leave it out"
                raise UserError("a source cannot start early", key=key, value=True, hint=hint)
            if hasattr(corpus, "chat_template") and corpus.packing != BEST_FIT:
                key, hint = f"dataset.sources.{name}.packing", f"add dataset.packing={BEST_FIT} to the source"
                what = "conversations in a mixture fill windows of the same length as texts"
                raise UserError(what, key=key, value=corpus.packing, hint=hint)
        self.sources = dict(sources)
        self.weights = None if weights is None else _checked(weights, self.sources, "dataset.weights")
        self.schedule = _checked_schedule(schedule or [], self.sources)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Renders the sources of conversations; None: there are none."""
        return next((t for t in (getattr(c, "chat_template", None) for c in self.sources.values()) if t), None)

    @property
    def special_tokens(self) -> list[str]:
        """Those that the tokenizer must have for any source, in the order of the sources."""
        return list(dict.fromkeys(token for corpus in self.sources.values() for token in corpus.special_tokens))

    @property
    def revision(self) -> str | None:
        """The versions of the sources at their origins, as ``name=version`` separated by blanks; None: none has one."""
        found = {name: corpus.revision for name, corpus in self.sources.items() if corpus.revision}
        return " ".join(f"{name}={revision}" for name, revision in found.items()) or None

    def pin(self, revision: str | None) -> None:
        """Use the versions that a run was trained on, as :attr:`revision` has them."""
        for name, _, found in (word.partition("=") for word in (revision or "").split()):
            if name in self.sources:
                self.sources[name].pin(found)

    def check(self) -> None:
        """Refuse sources that cannot be read.

        Raises:
            UserError: with the name of the source.
        """
        for name, corpus in self.sources.items():
            with naming(name):
                corpus.check()

    def check_length(self, n_steps: int) -> None:
        """Refuse a change of the weights that a run of so many steps would not reach.

        Raises:
            UserError: there is one.
        """
        for number, change in enumerate(self.schedule):
            if change.at >= n_steps:
                hint = f"the run has {n_steps} steps; a fraction below 1 is always within it"
                key = f"dataset.schedule[{number}].at"
                raise UserError("the run ends before the weights change", key=key, value=change.at, hint=hint)

    def for_test(self) -> "Mixture":
        """The same mixture with the test splits as validation.

        Raises:
            UserError: a source has none.
        """
        sources = {}
        for name, corpus in self.sources.items():
            with naming(name):
                sources[name] = corpus.for_test()
        return Mixture(sources=sources, weights=self.weights, schedule=None)

    def count_words(self, split: str, hashes: ContentHashes) -> int | None:
        """None: no paper reports the perplexity per word of a mixture."""
        return None


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Name the source in an error that its data set raises; the data set calls its keys ``dataset.*``."""
    try:
        yield
    except UserError as error:
        key = error.key
        if key is not None and key.startswith("dataset."):
            key = f"dataset.sources.{source}.{key.removeprefix('dataset.')}"
            raise UserError(error.what, key=key, value=error.value, file=error.file, hint=error.hint) from error
        hint = f"{error.hint + '; ' if error.hint else ''}it is in the source {source} of the mixture"
        raise UserError(error.what, key=key, value=error.value, file=error.file, hint=hint) from error


def check_name(name: Any) -> None:
    """Refuse a name of a source that metrics and the command line could not use.

    Raises:
        UserError: it is no identifier, or the name of a metric.
    """
    if not NAME.fullmatch(str(name)) or name in TOTALS:
        hint = f"use letters, digits and _, not starting with a digit, and none of {', '.join(TOTALS)}"
        raise UserError("invalid name of a source", key="dataset.sources", value=name, hint=hint)


def _checked(weights: Any, sources: Mapping[str, Any], key: str) -> dict[str, float]:
    """One weight per source, in the order of the sources."""
    known = ", ".join(sources)
    if not isinstance(weights, Mapping):
        raise UserError("wrong type", key=key, value=weights, hint=f"give a weight for each of {known}")
    for name, weight in weights.items():
        if name not in sources:
            similar = near(str(name), list(sources))
            hint = f"the sources are {known}" + (f"; did you mean {similar[0]}?" if similar else "")
            raise UserError("no such source", key=key, value=name, hint=hint)
        if not _is_number(weight) or not math.isfinite(weight) or weight < 0:
            raise UserError("not a weight", key=f"{key}.{name}", value=weight, hint="give a number of at least 0")
    missing = [name for name in sources if name not in weights]
    if missing:
        hint = f"give each source one (0: not trained on), or leave out {key}"
        raise UserError("a source has no weight", key=key, value=missing[0], hint=hint)
    if not any(weights.values()):
        raise UserError("all weights are 0", key=key, value=0, hint="at least one must be above 0")
    return {name: weights[name] for name in sources}


def _checked_schedule(schedule: Sequence[Any], sources: Mapping[str, Any]) -> list[Change]:
    changes = []
    for index, change in enumerate(schedule):
        key = f"dataset.schedule[{index}]"
        if not isinstance(change, Mapping) or set(change) != {"at", "weights"}:
            raise UserError("wrong type", key=key, value=change, hint="write {at:0.8,weights:{…}}")
        at = change["at"]
        if not _is_number(at) or not at > 0 or (at >= 1 and at != int(at)):
            hint = "give a fraction of the horizon between 0 and 1, or a step (a whole number from 1 on)"
            raise UserError("value out of range", key=f"{key}.at", value=at, hint=hint)
        changes.append(Change(at, _checked(change["weights"], sources, f"{key}.weights")))
    for before, after in pairwise(changes):
        value = f"{before.at}, {after.at}"
        if (before.at < 1) != (after.at < 1):
            hint = "give either fractions of the horizon or steps"
            raise UserError("fractions and steps are mixed", key="dataset.schedule", value=value, hint=hint)
        if after.at <= before.at:
            hint = "each change must come after the one before"
            raise UserError("the schedule does not rise", key="dataset.schedule", value=value, hint=hint)
    return changes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
