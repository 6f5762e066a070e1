"""Data of which training needs only the beginning to start: ``dataset.start_early``."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinyllm.data.arrivals import POLL_S, Arrivals, GrowingSplit
from tinyllm.data.build_cache import Show, notes_on_encoding
from tinyllm.data.cache_use import CacheUse
from tinyllm.data.corpus import Corpus
from tinyllm.data.preparation_process import PreparationProcess
from tinyllm.data.prepare import locate, with_settings
from tinyllm.data.token_cache import DamagedCacheError, open_cache
from tinyllm.data.token_data import Split, TokenData
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer


def prepare_early(
    corpus: Corpus,
    trainer: TokenizerTrainer,
    command: Sequence[str],
    task: Mapping[str, Any],
    *,
    cache_dir: str | Path | None = None,
    rules: int,
    show: Show,
) -> TokenData:
    """The token ids of ``corpus`` once its validation and its first shard are prepared; the training split grows.

    Args:
        command, task: the process that prepares them; see :class:`PreparationProcess`.
        cache_dir, rules: as for :func:`tinyllm.data.prepare.prepare`.
        show: receives the progress.

    Raises:
        UserError: the data cannot be prepared.
    """
    root, _, _, key = locate(corpus, trainer, cache_dir, rules)
    process, arrivals = PreparationProcess(command, task, root=root, key=key), Arrivals(root, key)
    try:
        while True:
            if (root / key).is_dir():
                try:
                    data = with_settings(open_cache(root / key, key), corpus, key)
                except (FileNotFoundError, DamagedCacheError):
                    pass
                else:
                    process.close()
                    return data
            arrived = arrivals.poll()
            train, val = (arrived.splits.get(side) for side in ("train", "val"))
            if train and val and val.is_complete and train.ids.tokens >= corpus.shard_tokens:
                try:
                    return growing_data(corpus, arrivals, process, root=root, key=key, rules=rules)
                except (OSError, UserError):  # the working folder has just got its final name
                    continue
            process.ensure(sum(progress.ids.tokens for progress in arrived.splits.values()))
            show(*process.stage)
            time.sleep(POLL_S)
    except BaseException:
        process.close()
        raise


def growing_data(
    corpus: Corpus, arrivals: Arrivals, process: PreparationProcess, *, root: Path, key: str, rules: int
) -> TokenData:
    """The data as they have arrived."""
    use = CacheUse(root, key)
    tokenizer = arrivals.tokenizer()
    if tokenizer is None:
        raise FileNotFoundError(root / key)
    val, train = (arrivals.split(name, tokenizer) for name in ("val", "train"))
    val.use = use
    shared = {one.name: getattr(train, one.name) for one in fields(Split)}
    growing = GrowingSplit(**shared | {"use": use}, arrivals=arrivals, process=process, root=root, key=key)
    notes = [*arrivals.finished.facts["notes"]]
    notes += notes_on_encoding(tokenizer, "validation", arrivals.finished.splits["val"].stats)
    notes.append(
        f"Training starts with the first {train.n_tokens:,} training tokens; the rest is prepared meanwhile and not"
        " counted here."
    )
    whole = _fingerprint(growing, val, tokenizer)
    return with_settings(TokenData(growing, val, tokenizer, notes, root / key, whole, rules), corpus, key)


def _fingerprint(train: Split, val: Split, tokenizer: Tokenizer) -> str:
    parts = [train.fingerprint, val.fingerprint, tokenizer.fingerprint()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
