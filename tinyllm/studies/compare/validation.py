"""One validation text for all arms of a comparison, so that arms with different data or tokenizers are comparable."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.config.compose import compose
from tinyllm.config.sources import data_overrides
from tinyllm.config.targets import Option
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Source
from tinyllm.data.mixture import Mixture
from tinyllm.data.prepare import cache_root
from tinyllm.data.split import Parts, identities, split
from tinyllm.errors import UserError, setting
from tinyllm.programs.builders import build_corpus, open_corpus, plain
from tinyllm.programs.evaluate import evaluate_run
from tinyllm.studies.compare.composed_arms import ComposedArm
from tinyllm.studies.compare.measurements import Measurements
from tinyllm.tokenizers import TokenizerTrainer

VALIDATION = "validation"
METRIC = "validation/bpb"


@dataclass(frozen=True)
class SharedValidation:
    """The validation part of a data set, on which the runs of all arms are evaluated after training.

    Attributes:
        text: the overrides that choose the data set.
        fingerprint: of its content.
        documents: identities of the documents of that part, sorted, uint64.
    """

    text: str
    fingerprint: str
    documents: np.ndarray

    @classmethod
    def open(cls, text: str, *, config_dir: str | None, allow: frozenset[Option]) -> "SharedValidation":
        """Read the data set that ``text`` chooses.

        Raises:
            UserError: it does not compose, cannot be read, or is no text.
        """
        try:
            cfg = compose(*data_overrides(text), program="prepare", config_dir=config_dir)
            corpus = build_corpus(plain(cfg.dataset), allow=allow)
            if not isinstance(corpus, Corpus) or corpus.content != "text":
                raise UserError("not a text", hint="choose one data set of text, as bits per byte need")
            if corpus.selection.max_tokens is not None:
                hint = "arms may count tokens differently; use dataset.max_documents"
                raise UserError("not the same text for all arms", hint=hint)
            corpus.check()
            source, parts = _parts(corpus)
        except UserError as error:
            place = setting(error.key, error.value) if error.key else str(error.file or "")
            hint = ": ".join(filter(None, (place, error.hint)))
            raise UserError(error.what, key=VALIDATION, value=text, hint=hint) from error
        return cls(text, source.fingerprint, np.unique(identities(parts.val())))

    def check_unseen(self, arms: Sequence[ComposedArm], *, allow: frozenset[Option]) -> None:
        """Refuse arms that train on a document of the validation text.

        Raises:
            UserError: an arm does; the message names it.
        """
        seen: dict[str, int] = {}
        for arm in arms:
            key = json.dumps([plain(arm.cfg.dataset), plain(arm.cfg.tokenizer)], sort_keys=True)
            if key not in seen:
                seen[key] = self._count_in(arm, *open_corpus(arm.cfg, allow=allow))
            if seen[key]:
                hint = f"arm {arm.name} trains on {seen[key]:,} of its documents; validate on a text of its own"
                raise UserError("an arm trains on the validation text", key=VALIDATION, value=self.text, hint=hint)

    def value(self, run: Path, measured: Measurements, *, config_dir: str | None, allow: frozenset[Option]) -> float:
        """The bits per byte of a finished run's last checkpoint, measured once per study."""
        kind = f"{METRIC} of {self.fingerprint[:16]}"
        if measured.get(kind, run.name) is None:
            overrides = data_overrides(self.text)
            cfg = compose(*overrides, f"run={run}", "checkpoint=last", program="evaluate", config_dir=config_dir)
            measured.put(kind, run.name, evaluate_run(cfg, str(run), allow=allow)["val/bpb"])
        return float(measured.get(kind, run.name))

    def _count_in(self, arm: ComposedArm, corpus: Any, trainer: TokenizerTrainer) -> int:
        """How many training documents of an arm, of all sources if they are a mixture, are in the validation text."""
        found = 0
        for source in corpus.sources.values() if isinstance(corpus, Mixture) else [corpus]:
            if not isinstance(source, Corpus):
                hint = f"arm {arm.name} trains on other data than text"
                raise UserError("there is no text to compare on", key=VALIDATION, value=self.text, hint=hint)
            source.count = trainer.count
            _, parts = _parts(source)
            found += int(np.isin(identities(parts.train()), self.documents).sum())
        return found


def _parts(corpus: Corpus) -> tuple[Source, Parts]:
    """A data set as it is now, and its split."""
    source = corpus.open(ContentHashes(cache_root() / "sources"))
    return source, split(source, corpus.val_fraction)
