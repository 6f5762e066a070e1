"""Preparing data: split a corpus, train the tokenizer, write the token cache; later starts only open it."""

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.data.build_cache import Show, build_cache
from tinyllm.data.cache_use import preparing
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.split import RULES
from tinyllm.data.token_cache import FORMAT, DamagedCacheError, open_cache
from tinyllm.data.token_data import TokenData
from tinyllm.data.token_writer import DamagedIdsError
from tinyllm.errors import UserError
from tinyllm.tokenizers import TokenizerTrainer
from tinyllm.utils.files import expand_home
from tinyllm.utils.locks import locked


def prepare(
    corpus: Corpus,
    tokenizer_trainer: TokenizerTrainer,
    *,
    cache_dir: str | Path | None = None,
    rules: int = RULES,
    progress: Show | None = None,
) -> TokenData:
    """The token ids of ``corpus``: from the cache, or read, split, tokenized and cached.

    The tokenizer is trained on the training split only. Of several processes that need the same data, one builds them.
    If it is killed, the next one goes on from its last finished shard.

    Args:
        cache_dir: the cache; None: ``$TINYLLM_CACHE``, else ``~/.cache/tinyllm``.
        rules: version of the split's rules, for runs that were trained under an earlier one.
        progress: receives the progress; not called if the data are in the cache.

    Raises:
        UserError: the corpus cannot be read or is too small, or the cache cannot be written.
    """
    show = progress or (lambda stage, done, total: None)
    root, hashes, source, key = locate(corpus, tokenizer_trainer, cache_dir, rules)
    data = _prepared(root, key, corpus, tokenizer_trainer, source, hashes, rules=rules, show=show)
    return with_settings(data, corpus, key)


def _prepared(
    root: Path,
    key: str,
    corpus: Corpus,
    trainer: TokenizerTrainer,
    source: Source,
    hashes: ContentHashes,
    *,
    rules: int,
    show: Show,
) -> TokenData:
    """The cache ``key``, built if it is missing or damaged."""
    folder = root / key
    try:
        return open_cache(folder, key)
    except (FileNotFoundError, DamagedCacheError):
        pass  # tried again under the lock, as another process may be building or repairing it
    try:
        with locked(preparing(root, key), lambda: show("waiting for another process that prepares these data", 0, 0)):
            try:
                return open_cache(folder, key)
            except FileNotFoundError:
                notes = []
            except DamagedCacheError as reason:
                notes = [f"The token cache was damaged ({reason}) and was rebuilt."]
            build = partial(build_cache, root, key, corpus, trainer, source, hashes, rules=rules, show=show)
            try:
                build()
            except DamagedIdsError:  # what a killed preparation left was not what it had written, and is removed now
                build()
            data = open_cache(folder, key, own=True)
    except OSError as error:
        raise _cannot_write(root, error) from error
    data.notes.extend(notes)
    return data


def cached(
    corpus: Corpus, tokenizer_trainer: TokenizerTrainer, *, cache_dir: str | Path | None = None
) -> TokenData | None:
    """The result of :func:`prepare` if it is in the cache, intact; else None. Builds nothing."""
    if not isinstance(corpus, Corpus):  # conversations are not cached
        return None
    root, _, _, key = locate(corpus, tokenizer_trainer, cache_dir, RULES)
    try:
        return with_settings(open_cache(root / key, key), corpus, key)
    except (FileNotFoundError, DamagedCacheError):
        return None


def with_settings(data: TokenData, corpus: Corpus, key: str) -> TokenData:
    """Cached data with what the settings of the corpus add: which id ends a document, how documents fill windows, and
    in what shards to read them.

    If they are read in shards, the fingerprint of the training split is that of what it is made from, because its ids
    are not all there when a run starts.
    """
    settings: dict[str, Any] = {"packing": corpus.packing}
    settings["eot_id"] = data.tokenizer.eot_id if corpus.eot_id is None else corpus.eot_id
    train, val = (replace(split, **settings) for split in (data.train, data.val))
    if corpus.start_early:
        train = replace(train, shard_tokens=corpus.shard_tokens, fingerprint=fingerprint_of("start_early", key))
    return replace(data, train=train, val=val)


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of all caches: ``cache_dir``, ``$TINYLLM_CACHE`` or ``~/.cache/tinyllm``."""
    try:
        return expand_home(cache_dir or os.environ.get("TINYLLM_CACHE") or "~/.cache/tinyllm")
    except UserError as error:
        hint = "set the environment variable TINYLLM_CACHE to a writable folder, or set HOME"
        raise UserError("no folder for the token cache", file=error.file, hint=hint) from error


def token_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of the token caches below :func:`cache_root`."""
    return cache_root(cache_dir) / "tokens"


def locate(
    corpus: Corpus, trainer: TokenizerTrainer, cache_dir: str | Path | None, rules: int
) -> tuple[Path, ContentHashes, Source, str]:
    """The folder of the token caches, the hashes of the files, the source, and the key of its cache.

    Raises:
        UserError: the corpus cannot be read, or is not for this tokenizer.
    """
    is_ready = corpus.accepts_ready_ids and trainer.is_fixed
    if corpus.content != trainer.content and not is_ready:
        hint = "dataset=npy and dataset=bin need tokenizer=ids, which they select automatically"
        hint += "; dataset=bin also takes tokenizer=pretrained; every other dataset is text"
        what = f"the data are {corpus.content}, but the tokenizer is for {trainer.content}"
        raise UserError(what, key="tokenizer._target_", value=type(trainer).__name__, hint=hint)
    trainer.check()
    corpus.count = trainer.count
    place = cache_root(cache_dir)
    hashes = ContentHashes(place / "sources")
    source = corpus.open(hashes)
    if source.rows and corpus.start_early:
        hint = "the data are rows of equal length, which are ids already; leave it out"
        raise UserError("rows are not read in shards", key="dataset.start_early", value=True, hint=hint)
    version = [] if rules == 1 else [rules]  # version 1 predates the numbering, and its caches keep their names
    key = fingerprint_of(FORMAT, source.fingerprint, trainer.fingerprint(), *version)[:32]
    return token_root(cache_dir), hashes, source, key


def _cannot_write(root: Path, error: OSError) -> UserError:
    folder = "a folder with more space" if error.errno == errno.ENOSPC else "a writable folder"
    hint = f"set the environment variable TINYLLM_CACHE to {folder}"
    return UserError(f"cannot write the token cache: {error.strerror or error}", file=root, hint=hint)
