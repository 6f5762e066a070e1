"""Data that are still being prepared: what of them has arrived on disk, as the journal says."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.data.journal import NAME, TOKENIZER, Finished, Progress, records
from tinyllm.data.preparation_process import PreparationProcess
from tinyllm.data.token_cache import DamagedCacheError, open_cache
from tinyllm.data.token_data import Split
from tinyllm.data.token_writer import BLOCK_BYTES, dtype_for, fingerprint_of_blocks, read_exceptions
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.pretrained import loads
from tinyllm.utils.files import TEMPORARY, is_trusted, open_read, read_bytes

POLL_S = 0.05
"""Seconds between two looks at the journal."""


class Arrivals:
    """Reads the journal of an unfinished cache as it grows.

    Args:
        root: the folder of the token caches.
        key: the cache.

    Attributes:
        folder: the working folder; None: there is none.
        finished: the content of its journal.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.folder: Path | None = None
        self.finished = Finished()
        self._root, self._key = root, key
        self._read = 0
        """Bytes of the journal that were taken in."""

    def poll(self) -> Finished:
        """What is finished now."""
        # A preparation that had to start over has a folder of its own, and the old one is gone.
        if self.folder is None or not (self.folder / NAME).exists():
            self._find()
        if self.folder is not None:
            with suppress(OSError), open_read(self.folder / NAME) as journal:
                journal.seek(self._read)
                content = journal.read()
                content = content[: content.rfind(b"\n") + 1]
                for record in records(content):
                    self.finished.add(record)
                self._read += len(content)
        return self.finished

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if it is not learned yet, or its folder is gone."""
        digest = self.finished.tokenizer_sha256
        if self.folder is None or digest is None:
            return None
        content = read_bytes(self.folder / TOKENIZER)
        return loads(content.decode()) if hashlib.sha256(content).hexdigest() == digest else None

    def split(self, name: str, tokenizer: Tokenizer) -> Split:
        """A split as far as it is finished.

        Raises:
            OSError: the working folder is gone.
        """
        assert self.folder is not None
        arrived = self.finished.splits.get(name, Progress()).ids
        dtype = dtype_for(tokenizer.vocab_size)
        has_tail = arrived.tokens * np.dtype(dtype).itemsize > len(arrived.blocks) * BLOCK_BYTES
        split = Split(
            name=name,
            path=self.folder / f"{name}.bin",
            dtype=dtype,
            n_tokens=arrived.tokens,
            row_length=None,
            fingerprint=fingerprint_of_blocks([*arrived.blocks, *([arrived.tail] if has_tail else [])]),
            token_bytes=tokenizer.token_bytes() if tokenizer.content == "text" else None,
            exceptions=read_exceptions(self.folder / f"{name}.exceptions", arrived.exceptions),
        )
        _ = split.ids  # mapped now: the file keeps its content, but not its name
        return split

    def _find(self) -> None:
        folders = self._root.glob(f"{TEMPORARY}{self._key}-*")
        self.folder = next((folder for folder in folders if self._has_journal(folder)), None)
        self.finished, self._read = Finished(), 0

    def _has_journal(self, folder: Path) -> bool:
        """Whether a folder is one that this user's processes prepare in."""
        return all(is_trusted(path, root=self._root) for path in (folder, folder / NAME))


@dataclass
class GrowingSplit(Split):
    """A training split that is still being prepared; ``n_tokens`` is what has arrived.

    Attributes:
        arrivals: of its cache.
        process: prepares it.
        root, key: of its cache.
        is_complete: it is finished, verified, and does not grow any more.
    """

    arrivals: Arrivals | None = field(default=None, repr=False, compare=False)
    process: PreparationProcess | None = field(default=None, repr=False, compare=False)
    root: Path = Path()
    key: str = ""
    is_complete: bool = False

    def refresh(self) -> None:
        """Look at what has arrived meanwhile.

        Raises:
            UserError: nothing more will: the preparation failed.
        """
        if self.is_complete:
            return
        assert self.arrivals is not None
        assert self.process is not None
        if (self.root / self.key).is_dir():
            try:
                self._take(open_cache(self.root / self.key, self.key).train)
            except (FileNotFoundError, DamagedCacheError):  # damaged: it is prepared anew, with the same content
                pass
            else:
                self.is_complete = True
                self.process.close()
                return
        train = self.arrivals.poll().splits.get("train", Progress())
        if train.ids.tokens > self.n_tokens and self.arrivals.folder is not None:
            try:
                mapped = np.memmap(
                    self.arrivals.folder / "train.bin", dtype=self.dtype, mode="r", shape=(train.ids.tokens,)
                )
            except (OSError, ValueError):  # the folder has just got its final name
                return
            self.n_tokens, self._ids = train.ids.tokens, np.asarray(mapped)
        self.process.ensure(self.n_tokens)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()

    def _take(self, finished: Split) -> None:
        self.path, self.n_tokens, self._ids = finished.path, finished.n_tokens, None
        self.exceptions, self.use = finished.exceptions, finished.use

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"arrivals": None, "process": None}
