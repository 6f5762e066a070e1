"""``python -m tinyllm.cache``: list the token caches, and remove old ones."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from tinyllm.data.cache_listing import CachedData, find_caches, remove_cache, to_remove
from tinyllm.data.prepare import token_root
from tinyllm.errors import UserError
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import duration, quantity, short

STYLES = {"in use": "green", "preparing": "cyan", "unfinished": "yellow", "damaged": "red"}
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def work(flags: argparse.Namespace) -> int:
    """List the caches, or remove some. Returns the exit code.

    Raises:
        UserError: flags that do not fit together, or a removal that nobody confirmed.
    """
    given = {
        "--older-than": flags.older_than,
        "--max-size": flags.max_size,
        "--dry-run": flags.dry_run,
        "--yes": flags.yes,
    }
    for flag, value in given.items():
        if value not in (None, False) and not flags.prune:
            raise UserError(f"{flag} has no effect without --prune", hint="add --prune, or leave it out")
    if flags.prune and flags.older_than is None and flags.max_size is None:
        raise UserError("--prune needs a limit", hint="add --older-than 30d or --max-size 10GB")
    age = None if flags.older_than is None else parse_age(flags.older_than)
    size = None if flags.max_size is None else parse_size(flags.max_size)
    caches = find_caches(token_root())
    if not flags.prune:
        _show(caches, as_json=flags.json)
        return 0
    chosen = to_remove(caches, before=None if age is None else time.time() - age, largest=size)
    return _prune(chosen, flags)


def _prune(chosen: Sequence[CachedData], flags: argparse.Namespace) -> int:
    total = quantity(sum(cache.size for cache in chosen), "B")
    noun = "cache" if len(chosen) == 1 else "caches"
    if flags.dry_run:
        _show(chosen, as_json=flags.json)
        if not flags.json:
            print(f"would remove {len(chosen)} {noun}, {total}")
        return 0
    if chosen and not flags.yes:
        if flags.json or not sys.stdin.isatty():
            raise UserError(f"nothing was removed of {len(chosen)} {noun}, {total}", hint="confirm with --yes")
        _show(chosen, as_json=False)
        if input(f"remove {len(chosen)} {noun}, {total}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 0
    removed = [cache for cache in chosen if remove_cache(cache)]
    if flags.json:
        print(json.dumps({"removed": [_facts(cache) for cache in removed]}))
    else:
        noun = "cache" if len(removed) == 1 else "caches"
        print(f"removed {len(removed)} {noun}, {quantity(sum(cache.size for cache in removed), 'B')}")
    return 0


def _facts(cache: CachedData) -> dict[str, object]:
    return asdict(cache) | {"path": str(cache.path)}


def _show(caches: Sequence[CachedData], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_facts(cache) for cache in caches]))
        return
    if not caches:
        print("no caches")
        return
    names = ("cache", "status", "data", "tokenizer", "vocab", "train", "val", "size", "used")
    right = ("vocab", "train", "val", "size", "used")
    columns = [Column(name=n, right=n in right, styles=STYLES if n == "status" else {}) for n in names]
    Table(columns=columns, rows=[_row(cache) for cache in caches]).show()
    print(f"all: {quantity(sum(cache.size for cache in caches), 'B')}, in {token_root()}")


def _row(cache: CachedData) -> list[str]:
    counts = (cache.vocab_size, cache.train_tokens, cache.val_tokens)
    return [
        *(cache.key[:12], cache.status, cache.data or "", cache.tokenizer or ""),
        *("" if count is None else short(count) for count in counts),
        quantity(cache.size, "B"),
        f"{duration(time.time() - cache.last_used)} ago",
    ]


def parse_age(text: str) -> int:
    """Seconds of ``90m``, ``12h``, ``30d`` or ``4w``. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip().lower())
    if not found:
        raise UserError("not an age", key="--older-than", value=text, hint="give 90m, 12h, 30d or 4w")
    return int(found[1]) * SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``1.5GB`` or ``0``. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise UserError("not a size", key="--max-size", value=text, hint="give 500MB, 10GB or 0")
    return int(float(found[1]) * BYTES[found[2]])
