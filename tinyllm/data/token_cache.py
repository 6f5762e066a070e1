"""The token cache on disk: one folder per (corpus, tokenizer), written atomically and verified when opened.

A folder holds ``train.bin`` and ``val.bin`` (ids, little-endian), ``exceptions.npz`` (bytes of unusual tokens),
``tokenizer.json`` and ``meta.json`` (sizes and sha256 of all files; for the ids, of every block of 4 MiB).

Opening verifies meta.json by its own digest, all sizes, tokenizer and exceptions by sha256, and the ids by block. All
blocks are verified, unless the files have the same stamp (size, times, inode) as at their last full verification *and*
exceed 64 MiB together; then the first, the last and 6 random blocks are. So any edit is found at once, and silent
corruption of a large file eventually.
"""

import hashlib
import json
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from random import SystemRandom
from typing import Any, BinaryIO

import numpy as np

from tinyllm.data.cache_use import CacheUse
from tinyllm.data.content_hashes import stamp
from tinyllm.data.token_data import Split, TokenData
from tinyllm.data.token_writer import BLOCK_BYTES, EXCEPTIONS
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.pretrained import loads
from tinyllm.utils.files import is_trusted, read_json, remove, replace, set_mode, sync

FORMAT = 1
ALWAYS_CHECKED_BYTES = 2**26
RANDOM_BLOCKS = 6
SIDES = ("train", "val")
DTYPES = ("uint16", "uint32")


LARGEST_META = 512 << 20
"""Size limit of meta.json in bytes; it lists the hashes of all blocks."""


class DamagedCacheError(Exception):
    """The folder is not a complete, unchanged cache; the message says why."""


def save_metadata(folder: Path, tokenizer: Tokenizer, exceptions: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write everything besides the ids, meta.json last; on return all files are durable."""
    packed = BytesIO()
    arrays: dict[str, Any] = dict(exceptions)  # typed Any, because np.savez in numpy 2 also has a boolean keyword
    np.savez(packed, **arrays)
    contents = {"tokenizer.json": tokenizer.to_json().encode(), "exceptions.npz": packed.getvalue()}
    meta = meta | {"format": FORMAT, "vocab_size": tokenizer.vocab_size, "kind": tokenizer.content}
    meta["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents["meta.json"] = json.dumps(meta | {"digest": _digest(meta)}).encode()
    for name, content in contents.items():
        replace(folder / name, partial(_put, content))
    for file in folder.glob(f"*{EXCEPTIONS}"):
        remove(file)  # they are packed now
    for file in folder.iterdir():
        set_mode(file, 0o444)  # read-only, because running training jobs have these files mapped
    sync(folder)


def _put(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def open_cache(folder: Path, key: str, *, own: bool = False) -> TokenData:
    """Open and verify the cache in ``folder``.

    Args:
        own: this process has just written it, so its owner in the file system is not checked.

    Raises:
        FileNotFoundError: the folder does not exist.
        DamagedCacheError: its content is not what was written under this key.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    use = CacheUse(folder.parent, folder.name)
    if not folder.is_dir():  # removed before it was marked as used
        raise FileNotFoundError(folder)
    if not own and not all(is_trusted(path, root=folder.parent) for path in (folder, *folder.iterdir())):
        raise DamagedCacheError("it belongs to a different user")
    try:
        return _open(folder, key, use)
    except UserError as error:
        raise DamagedCacheError(str(error)) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedCacheError(f"{type(error).__name__}: {error}") from error


def _open(folder: Path, key: str, use: CacheUse) -> TokenData:
    meta = read_json(folder / "meta.json", largest=LARGEST_META)
    digest = meta.pop("digest")
    _require(digest == _digest(meta), "meta.json was edited")
    _require(meta["format"] == FORMAT, "it has a different format")
    _require(meta["key"] == key, "it belongs to different data or a different tokenizer")
    content = {name: (folder / name).read_bytes() for name in meta["files"]}
    for name, data in content.items():
        _require(hashlib.sha256(data).hexdigest() == meta["files"][name], f"{name} is not what was written")
    tokenizer = loads(content["tokenizer.json"].decode())
    _require(tokenizer.vocab_size == meta["vocab_size"], "the tokenizer has a different vocabulary")
    exceptions = np.load(BytesIO(content["exceptions.npz"]), allow_pickle=False)
    _check_ids(folder, meta)
    token_bytes = tokenizer.token_bytes() if meta["kind"] == "text" else None
    splits = [
        Split(
            name=side,
            path=folder / f"{side}.bin",
            dtype=entry["dtype"],
            n_tokens=entry["tokens"],
            row_length=entry["row_length"],
            fingerprint=entry["sha256"],
            token_bytes=token_bytes,
            exceptions=exceptions[side],
            use=use,
        )
        for side, entry in ((side, meta["splits"][side]) for side in SIDES)
    ]
    whole = hashlib.sha256("".join([*(split.fingerprint for split in splits), tokenizer.fingerprint()]).encode())
    rules = int(meta.get("rules", 1))
    return TokenData(splits[0], splits[1], tokenizer, list(meta["notes"]), folder, whole.hexdigest(), rules)


def _check_ids(folder: Path, meta: dict[str, Any]) -> None:
    stamps = {}
    for side in SIDES:
        entry, file = meta["splits"][side], folder / f"{side}.bin"
        stamps[side] = stamp(file)
        _require(entry["dtype"] in DTYPES, f"unknown dtype {entry['dtype']}")
        size = entry["tokens"] * np.dtype(entry["dtype"]).itemsize
        _require(stamps[side][0] == size, f"{file.name} has {stamps[side][0]} bytes instead of {size}")
        _require(len(entry["blocks"]) == -(-size // BLOCK_BYTES), "the list of blocks has the wrong length")
    seal_file = folder / "checked.json"
    sealed = _sealed(seal_file) == stamps
    sample = sealed and sum(status[0] for status in stamps.values()) > ALWAYS_CHECKED_BYTES
    for side in SIDES:
        _check_blocks(folder / f"{side}.bin", meta["splits"][side], meta["vocab_size"], sample)
    if not sealed:
        with suppress(OSError):  # optional: it saves the next start a full verification
            replace(seal_file, lambda stream: stream.write(json.dumps(stamps).encode()))


def _check_blocks(file: Path, entry: dict[str, Any], vocab_size: int, sample: bool) -> None:
    numbers = range(len(entry["blocks"]))
    if sample:
        chosen = SystemRandom().sample(numbers, min(RANDOM_BLOCKS, len(numbers)))
        numbers = sorted({0, len(numbers) - 1, *chosen})  # type: ignore[assignment]
    with open(file, "rb") as stream:
        for i in numbers:
            stream.seek(i * BLOCK_BYTES)
            block = stream.read(BLOCK_BYTES)
            _require(
                hashlib.sha256(block).hexdigest() == entry["blocks"][i],
                f"block {i} of {file.name} is damaged",
            )
            largest = int(np.frombuffer(block, dtype=entry["dtype"]).max())
            _require(largest < vocab_size, f"{file.name} has id {largest}, the vocabulary is {vocab_size}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DamagedCacheError(otherwise)


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sealed(file: Path) -> Any:
    try:
        return read_json(file)
    except UserError:
        return None
