"""Preparing data: split a corpus, train the tokenizer, write the token cache; later starts only open it."""

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm.data.cache_use import preparing
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.encode import encode_documents
from tinyllm.data.split import RULES, Parts, split
from tinyllm.data.text_batch import EncodingStats
from tinyllm.data.token_cache import (
    FORMAT,
    SIDES,
    DamagedCacheError,
    TokenWriter,
    open_cache,
    remove_stale,
    save_metadata,
)
from tinyllm.data.token_data import TokenData
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer
from tinyllm.tokenizers.ids import ReadyIds
from tinyllm.utils.files import TEMPORARY, expand_home, remove, sync
from tinyllm.utils.locks import locked

LONG_PIECE = 2**21
"""Characters in one piece beyond which a note says that the tokenizer cannot cut the text."""
SHOWN_EVERY = 2**18
"""Bytes between two reports of progress."""
Progress = Callable[[str, int, int], None]
"""Called with the stage, the bytes done and the bytes in total (0 if unknown)."""


def prepare(
    corpus: Corpus,
    tokenizer_trainer: TokenizerTrainer,
    *,
    cache_dir: str | Path | None = None,
    rules: int = RULES,
    progress: Progress | None = None,
) -> TokenData:
    """The token ids of ``corpus``: from the cache, or read, split, tokenized and cached.

    The tokenizer is trained on the training split only. Of several processes that need the same data, one builds them.

    Args:
        cache_dir: the cache; None: ``$TINYLLM_CACHE``, else ``~/.cache/tinyllm``.
        rules: version of the split's rules, for runs that were trained under an earlier one.
        progress: receives the progress; not called if the data are in the cache.

    Raises:
        UserError: the corpus cannot be read or is too small, or the cache cannot be written.
    """
    show = progress or (lambda stage, done, total: None)
    root, hashes, source, key = _look(corpus, tokenizer_trainer, cache_dir, rules)
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
            remove_stale(root, key)
            with _working_folder(root, key) as work:
                try:
                    _fill(work, corpus, tokenizer_trainer, source, key, rules, show)
                finally:
                    # If a file changes while being read, the ids match no version of it and other errors may follow, so
                    # report the change.
                    hashes.require_unchanged()
            data = open_cache(folder, key, own=True)
    except OSError as error:
        raise _cannot_write(root, error) from error
    data.notes.extend(notes)
    return data


def cached(
    corpus: Corpus, tokenizer_trainer: TokenizerTrainer, *, cache_dir: str | Path | None = None
) -> TokenData | None:
    """The result of :func:`prepare` if it is in the cache, intact; else None. Builds nothing."""
    root, _, _, key = _look(corpus, tokenizer_trainer, cache_dir, RULES)
    try:
        return open_cache(root / key, key)
    except (FileNotFoundError, DamagedCacheError):
        return None


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


def _look(
    corpus: Corpus, trainer: TokenizerTrainer, cache_dir: str | Path | None, rules: int
) -> tuple[Path, ContentHashes, Source, str]:
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
    version = [] if rules == 1 else [rules]  # version 1 predates the numbering, and its caches keep their names
    key = fingerprint_of(FORMAT, source.fingerprint, trainer.fingerprint(), *version)[:32]
    return token_root(cache_dir), hashes, source, key


@contextmanager
def _working_folder(root: Path, key: str) -> Iterator[Path]:
    """A temporary folder that is renamed to the cache ``key`` on success and removed on failure."""
    # The name starts with the key, because its lock tells whether a process is using the folder. It ends unpredictably,
    # so that nobody can plant a folder under that name.
    work, old = (root / f"{TEMPORARY}{key}-{secrets.token_hex(8)}" for _ in range(2))
    try:
        work.mkdir()
        yield work
        if (root / key).exists():
            (root / key).rename(old)
        work.rename(root / key)
        sync(root)
    finally:
        remove(work)
        remove(old)


def _fill(
    folder: Path, corpus: Corpus, trainer: TokenizerTrainer, source: Source, key: str, rules: int, show: Progress
) -> None:
    """Split the corpus, train the tokenizer on the training split, write the ids of both splits."""
    show("reading", 0, source.size)
    parts = split(source, corpus.val_fraction, rules=rules)
    read = _Meter("learning the vocabulary", parts.train_size, show)
    texts = (text for document in parts.train() for text in trainer.pieces(read.chunks(document)))
    tokenizer = trainer.train(texts, n_documents=parts.train_documents, size=parts.train_size)
    tokenizer = tokenizer.covering(chunk for document in parts.val() for chunk in document.chunks())
    notes = [*source.notes, *parts.notes, *trainer.notes(tokenizer)]
    meta = {"key": key, "notes": notes, "val_fraction": corpus.val_fraction, "rules": rules}
    meta |= {"data": _described(corpus, source), "tokenizer": trainer.label}
    _write(folder, tokenizer, parts, source, meta, show, is_ready=corpus.content != tokenizer.content)


def _described(corpus: Corpus, source: Source) -> str:
    """The kind of data and where they are, for the list of caches."""
    kind = type(corpus).__name__.removesuffix("Corpus").lower()
    if source.path is None:
        return kind
    return f"{kind} {os.path.abspath(source.path) if os.path.exists(source.path) else source.path}"


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    parts: Parts,
    source: Source,
    meta: dict[str, Any],
    show: Progress,
    *,
    is_ready: bool,
) -> None:
    """Write both splits, the tokenizer and the metadata into an empty folder; ``is_ready``: they are ids already."""
    meta["splits"], exceptions = {}, {}
    encoder = ReadyIds(tokenizer) if is_ready else tokenizer
    read = _Meter("tokenizing", source.size, show)
    for side, documents in zip(SIDES, (parts.train, parts.val), strict=True):
        stats = EncodingStats()
        with TokenWriter(folder / f"{side}.bin", tokenizer) as writer:
            with closing(encode_documents(encoder, read.documents(documents()), stats=stats)) as encoded:
                for ids, lengths in encoded:
                    writer.write(ids, lengths)
            entry, exceptions[side] = writer.finish()
        _require_some(side, writer.n_tokens, meta["val_fraction"])
        row = len(next(next(documents()).chunks())) if source.rows else None
        meta["splits"][side] = entry | {"row_length": row}
        meta["notes"] += _notes(tokenizer, {"train": "training", "val": "validation"}[side], stats)
    save_metadata(folder, tokenizer, exceptions, meta)


def _notes(tokenizer: Tokenizer, side: str, stats: EncodingStats) -> list[str]:
    """Remarks for the user on how the text was encoded."""
    notes = []
    if stats.characters:
        single = stats.characters == 1
        noun, are, were = ("character", "is", "was") if single else ("characters", "are", "were")
        became = "became <unk>" if tokenizer.unk_id is not None else f"{were} left out"
        size = f"{stats.bytes:,} byte{'s' * (stats.bytes != 1)}"
        notes.append(
            f"{stats.characters:,} {noun} of the {side} text {are} not in the tokenizer's vocabulary "
            f"and {became}; {'its' if single else 'their'} {size} {'is' if stats.bytes == 1 else 'are'} counted."
        )
    if stats.longest > LONG_PIECE and tokenizer.content == "text":
        notes.append(
            f"{stats.longest:,} characters of the {side} text were encoded in one piece, because this tokenizer "
            "cannot cut them anywhere; that takes about 0.2 GB of memory per million."
        )
    return notes


def _require_some(side: str, n_tokens: int, val_fraction: float) -> None:
    """Refuse a split of fewer than two tokens: one to read and one to predict."""
    if n_tokens < 2:
        name, remedy = {
            "train": ("training", "lower it, or use more data"),
            "val": ("validation", "raise it, give dataset.val_path, or use more data"),
        }[side]
        what = f"the {name} split has too few tokens: {n_tokens}"
        raise UserError(what, key="dataset.val_fraction", value=val_fraction, hint=remedy)


class _Meter:
    """Reports progress while documents are read through it."""

    def __init__(self, stage: str, total: int, show: Progress) -> None:
        self._stage, self._total, self._show = stage, total, show
        self._done, self._next = 0, 0

    def chunks(self, document: Document) -> Iterator[Any]:
        for chunk in document.chunks():
            yield chunk
            self._done += len(chunk) * getattr(chunk, "itemsize", 1)
            if self._done >= self._next:  # drawing a bar takes longer than reading a short document
                self._next = self._done + SHOWN_EVERY
                self._show(self._stage, min(self._done, self._total), self._total)

    def documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            yield Document(document.digest, document.size, partial(self.chunks, document), document.text_digest)


def _cannot_write(root: Path, error: OSError) -> UserError:
    folder = "a folder with more space" if error.errno == errno.ENOSPC else "a writable folder"
    hint = f"set the environment variable TINYLLM_CACHE to {folder}"
    return UserError(f"cannot write the token cache: {error.strerror or error}", file=root, hint=hint)
