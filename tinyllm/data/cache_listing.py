"""The token caches on disk: list them, and remove those that nothing uses."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.data.cache_use import USED, last_used, preparing
from tinyllm.data.token_cache import LARGEST_META
from tinyllm.errors import UserError
from tinyllm.utils.files import TEMPORARY, read_json, remove
from tinyllm.utils.locks import is_held, try_lock

IN_USE, READY, UNFINISHED, PREPARING, DAMAGED = "in use", "ready", "unfinished", "preparing", "damaged"


@dataclass(frozen=True, kw_only=True)
class CachedData:
    """A token cache, or what a killed preparation left of one.

    Attributes:
        path: its folder.
        key: name of its locks.
        status: "in use" by a living run, "ready", "preparing", "unfinished" (its process was killed) or "damaged".
        size: bytes on disk.
        data, tokenizer: what it was made from; None: made by an earlier version.
        train_tokens, val_tokens, vocab_size: None if it is not complete.
        last_used: seconds since 1970.
    """

    path: Path
    key: str
    status: str
    size: int
    data: str | None = None
    tokenizer: str | None = None
    train_tokens: int | None = None
    val_tokens: int | None = None
    vocab_size: int | None = None
    last_used: float

    @property
    def is_free(self) -> bool:
        """Whether no living process uses or prepares it."""
        return self.status not in (IN_USE, PREPARING)


def find_caches(root: Path) -> list[CachedData]:
    """All caches in the folder ``root``, the last used first."""
    try:
        folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.is_symlink()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read the folder of the token caches: {error.strerror}", file=root) from None
    caches = [cache for folder in folders if (cache := _found(root, folder)) is not None]
    return sorted(caches, key=lambda cache: (-cache.last_used, cache.key))


def _found(root: Path, folder: Path) -> CachedData | None:
    partial = folder.name.startswith(TEMPORARY)
    key = folder.name.split("-")[1] if partial and "-" in folder.name else folder.name
    if not partial and not (folder / "meta.json").exists():
        return None  # not made by tinyllm
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
        used = last_used(root, key, folder)
    except OSError:  # removed in this moment
        return None
    facts: dict[str, Any] = {}
    if partial:
        status = PREPARING if is_held(preparing(root, key)) else UNFINISHED
    else:
        facts = _facts(folder)
        in_use = is_held(root / f"{key}{USED}", shared=True) or is_held(preparing(root, key))
        status = IN_USE if in_use else READY if facts else DAMAGED
    return CachedData(path=folder, key=key, status=status, size=size, last_used=used, **facts)


def _facts(folder: Path) -> dict[str, Any]:
    """What meta.json says; empty if it is damaged."""
    try:
        meta = read_json(folder / "meta.json", largest=LARGEST_META)
        return {
            "data": meta.get("data"),
            "tokenizer": meta.get("tokenizer"),
            "train_tokens": int(meta["splits"]["train"]["tokens"]),
            "val_tokens": int(meta["splits"]["val"]["tokens"]),
            "vocab_size": int(meta["vocab_size"]),
        }
    except (UserError, OSError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def to_remove(
    caches: Sequence[CachedData], *, before: float | None = None, largest: int | None = None
) -> list[CachedData]:
    """The caches to remove, the least recently used first; never one that a living process uses or prepares.

    Args:
        before: those last used before this time, in seconds since 1970.
        largest: and then so many that all together have at most this many bytes.
    """
    oldest_first = sorted((cache for cache in caches if cache.is_free), key=lambda cache: (cache.last_used, cache.key))
    chosen = [cache for cache in oldest_first if before is not None and cache.last_used < before]
    total = sum(cache.size for cache in caches) - sum(cache.size for cache in chosen)
    for cache in oldest_first:
        if largest is not None and total > largest and cache not in chosen:
            chosen.append(cache)
            total -= cache.size
    return chosen


def remove_cache(cache: CachedData) -> bool:
    """Remove a cache, unless a process has begun to use or prepare it; returns whether it was removed.

    Raises:
        UserError: the folder cannot be removed.
    """
    root = cache.path.parent
    # Renamed first, under both locks: a run that starts now finds either the whole cache or none.
    gone = root / f"{TEMPORARY}{cache.key}-{secrets.token_hex(8)}"
    with _both_locks(root, cache.key) as is_free:
        if not is_free:
            return False
        try:
            cache.path.rename(gone)
        except OSError as error:
            raise UserError(f"cannot remove the token cache: {error.strerror}", file=cache.path) from None
        remove(gone)
    return True


@contextmanager
def _both_locks(root: Path, key: str) -> Iterator[bool]:
    """Hold the locks of preparing and of using a cache; gives whether both were free."""
    held: list[int] = []
    try:
        for file in (preparing(root, key), root / f"{key}{USED}"):
            with suppress(OSError):
                descriptor = try_lock(file)
                held += [] if descriptor is None else [descriptor]
        yield len(held) == 2
    finally:
        for descriptor in held:
            os.close(descriptor)
