"""Building a token cache: split the corpus, train the tokenizer, write the ids shard by shard."""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus, Document, Source
from tinyllm.data.encode import PIECE, encode_documents
from tinyllm.data.encoding_pool import LostProcessError
from tinyllm.data.journal import NAME, Journal, Progress, adoptable, is_worth_keeping
from tinyllm.data.split import Parts, split
from tinyllm.data.text_batch import EncodingStats
from tinyllm.data.token_cache import SIDES, save_metadata
from tinyllm.data.token_writer import TokenWriter
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer
from tinyllm.tokenizers.ids import ReadyIds
from tinyllm.utils.disk_space import require_space
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.files import TEMPORARY, remove, sync
from tinyllm.utils.locks import try_lock

SHARD_TOKENS = 2**22
"""Tokens after which what is written is made durable, so that a killed preparation goes on from there."""
KEPT_SECONDS = 30 * 86400
"""How long the beginning of a cache that was killed is kept."""
MEASURED_DOCUMENTS, MEASURED_PIECE = 32, 2**14
"""Documents, and characters (or ids) of each, from whose tokens the size of the cache is estimated."""
LONG_PIECE = 2**21
"""Characters in one piece beyond which a note says that the tokenizer cannot cut the text."""
SHOWN_EVERY = 2**18
"""Bytes between two reports of progress."""
Show = Callable[[str, int, int], None]
"""Called with the stage, the bytes done and the bytes in total (0 if unknown)."""


def build_cache(
    root: Path,
    key: str,
    corpus: Corpus,
    trainer: TokenizerTrainer,
    source: Source,
    hashes: ContentHashes,
    *,
    rules: int,
    show: Show,
) -> None:
    """Build the cache ``key``, whose lock the caller holds; go on where a killed process stopped.

    Raises:
        UserError: the corpus cannot be read, is too small, or changes meanwhile.
        DamagedIdsError: what a killed process left is damaged; it has been removed.
        OSError: the cache cannot be written.
    """
    identity = {"key": key, "files": hashes.stamps_digest(), "piece": PIECE}
    with _working_folder(root, key, identity) as work:
        try:
            _fill(work, corpus, trainer, source, identity, rules, show)
        finally:
            # If a file changes while being read, the ids match no version of it and other errors may follow, so
            # report the change.
            hashes.require_unchanged()


@contextmanager
def _working_folder(root: Path, key: str, identity: Any) -> Iterator[Path]:
    """A temporary folder that is renamed to the cache ``key`` on success and removed after an error.

    A signal, like SIGKILL of this process or of one that it started, leaves it for the next preparation of the data.
    """
    # The name starts with the key, because its lock tells whether a process is using the folder. It ends unpredictably,
    # so that nobody can plant a folder under that name.
    work, old = (root / f"{TEMPORARY}{key}-{secrets.token_hex(8)}" for _ in range(2))
    work = next((left for left in root.glob(f"{TEMPORARY}{key}-*") if adoptable(left, identity)), work)
    remove_stale(root, key, keep=work)
    try:
        work.mkdir(exist_ok=True)
        yield work
        if (root / key).exists():
            (root / key).rename(old)
        work.rename(root / key)
        sync(root)
    except LostProcessError:
        raise
    except Exception:
        remove(work)
        raise
    finally:
        remove(old)
        if work.exists() and not is_worth_keeping(work):
            remove(work)


def remove_stale(root: Path, key: str, *, keep: Path | None = None) -> None:
    """Remove what killed processes left, unless a preparation can go on from there.

    Args:
        key: key of the lock that the caller holds; of its folders only ``keep`` stays.
        keep: a folder that is not removed.
    """
    for folder in root.glob(f"{TEMPORARY}*"):
        owner = folder.name.split("-")[1]
        if owner == key:
            if folder != keep:
                remove(folder)
            continue
        with suppress(OSError):
            if is_worth_keeping(folder) and time.time() - (folder / NAME).stat().st_mtime < KEPT_SECONDS:
                continue
            descriptor = try_lock(root / f"{owner}.lock")
            if descriptor is not None:
                remove(folder)
                os.close(descriptor)


def _fill(
    folder: Path, corpus: Corpus, trainer: TokenizerTrainer, source: Source, identity: Any, rules: int, show: Show
) -> None:
    """Split the corpus, train the tokenizer on the training split, write the ids of both splits."""
    journal = Journal(folder, identity)
    show("reading", 0, source.size)
    parts = split(source, corpus.val_fraction, rules=rules)
    written = sum(file.stat().st_size for file in folder.iterdir())
    require_space(
        _bytes_needed(parts, trainer) - written,
        folder=folder.parent,
        what="the token cache",
        hint="set the environment variable TINYLLM_CACHE to a folder with more space",
    )
    tokenizer = journal.tokenizer
    if tokenizer is None:
        tokenizer = _learned(trainer, parts, show)
        journal.begin(tokenizer, {"notes": [*source.notes, *parts.notes, *trainer.notes(tokenizer)]})
    is_ready = corpus.content != tokenizer.content
    encoder = ReadyIds(tokenizer) if is_ready else tokenizer
    read = Meter("tokenizing", source.size, show, done=max(p.read for p in map(journal.progress, SIDES)))
    every = min(SHARD_TOKENS, corpus.shard_tokens) if corpus.start_early else SHARD_TOKENS
    entries: dict[str, dict[str, Any]] = {}
    exceptions: dict[str, np.ndarray] = {}
    notes: dict[str, list[str]] = {}
    for side in reversed(SIDES):  # validation first, because training can start with it and a part of the training data
        documents = parts.train if side == "train" else parts.val
        with TokenWriter(folder / f"{side}.bin", tokenizer, after=journal.progress(side).ids) as writer:
            _write_shards(journal, side, writer, encoder, documents, read, every=every)
            _require_some(side, writer.n_tokens, corpus.val_fraction)
            entry, exceptions[side] = writer.finish()
        entries[side] = entry | {"row_length": len(next(next(documents()).chunks())) if source.rows else None}
        notes[side] = notes_on_encoding(
            tokenizer, {"train": "training", "val": "validation"}[side], journal.progress(side).stats
        )
    meta = {"key": identity["key"], "val_fraction": corpus.val_fraction, "rules": rules}
    meta |= {"data": _described(corpus, source), "tokenizer": trainer.label}
    meta["notes"] = journal.finished.facts["notes"] + [note for side in SIDES for note in notes[side]]
    meta["splits"] = {side: entries[side] for side in SIDES}
    save_metadata(folder, tokenizer, {side: exceptions[side] for side in SIDES}, meta)
    journal.remove()


def _bytes_needed(parts: Parts, trainer: TokenizerTrainer) -> int:
    """Bytes of the ids of the training split, estimated from its beginning; at least, because an id has two or four."""
    tokens, size = 0, 0
    for document in islice(parts.train(), MEASURED_DOCUMENTS):
        for chunk in islice(document.chunks(), 1):
            beginning = chunk[:MEASURED_PIECE]
            tokens += trainer.count(beginning) if isinstance(beginning, str) else len(beginning)
            size += len(beginning.encode()) if isinstance(beginning, str) else beginning.nbytes
    return 2 * parts.train_size * tokens // max(1, size)


def _learned(trainer: TokenizerTrainer, parts: Parts, show: Show) -> Tokenizer:
    """The tokenizer of the training split, which also covers validation."""
    fault("prepare:tokenizer")
    read = Meter("learning the vocabulary", parts.train_size, show)
    texts = (text for document in parts.train() for text in trainer.pieces(read.chunks(document)))
    tokenizer = trainer.train(texts, n_documents=parts.train_documents, size=parts.train_size)
    return tokenizer.covering(chunk for document in parts.val() for chunk in document.chunks())


def _write_shards(
    journal: Journal,
    side: str,
    writer: TokenWriter,
    encoder: Tokenizer,
    documents: Callable[[], Iterator[Document]],
    read: "Meter",
    *,
    every: int,
) -> None:
    """Write what is missing of a split, in shards of about ``every`` tokens."""
    progress = journal.progress(side)
    if progress.is_complete:
        return
    stats, position, durable = copy(progress.stats), progress.position, progress.ids.tokens
    encoded = encode_documents(encoder, read.documents(documents()), stats=stats, start=position)
    with closing(encoded):
        for text in encoded:
            writer.write(text.ids, text.lengths)
            if text.end is not None and writer.n_tokens - durable >= every:
                position, durable = text.end, writer.n_tokens
                ids = writer.commit()
                journal.end_shard(
                    side, Progress(ids=ids, position=position, stats=copy(stats), read=read.done, is_complete=False)
                )
    journal.end_shard(
        side, Progress(ids=writer.commit(), position=position, stats=stats, read=read.done, is_complete=True)
    )


def _described(corpus: Corpus, source: Source) -> str:
    """The kind of data and where they are, for the list of caches."""
    if source.path is None:
        return corpus.label
    return f"{corpus.label} {os.path.abspath(source.path) if os.path.exists(source.path) else source.path}"


def notes_on_encoding(tokenizer: Tokenizer, side: str, stats: EncodingStats) -> list[str]:
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


class Meter:
    """Reports progress while documents are read through it.

    Args:
        stage: what they are read for.
        total: bytes of all of them.
        show: receives the progress.
        done: bytes that an earlier process has read.
    """

    def __init__(self, stage: str, total: int, show: Show, *, done: int = 0) -> None:
        self._stage, self._total, self._show = stage, total, show
        self.done, self._next = done, 0

    def chunks(self, document: Document) -> Iterator[Any]:
        """The content of a document, counted as it is read."""
        for chunk in document.chunks():
            yield chunk
            self.done += len(chunk) * getattr(chunk, "itemsize", 1)
            if self.done >= self._next:  # drawing a bar takes longer than reading a short document
                self._next = self.done + SHOWN_EVERY
                self._show(self._stage, min(self.done, self._total), self._total)

    def documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, counted as they are read."""
        for document in documents:
            yield Document(document.digest, document.size, partial(self.chunks, document), document.text_digest)
