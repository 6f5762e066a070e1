"""Journal of a preparation: what of a token cache is finished on disk, so that a killed one goes on from there.

It is a file of JSON lines in the working folder. Each line is written after what it describes is durable, so a line cut
off by a kill describes nothing. The first line says what is being prepared and from which files, the second has the
tokenizer, and each further one a shard: how far the ids of a split have come, and how far its documents were read.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllm.data.text_batch import EncodingStats, Position
from tinyllm.data.token_writer import Durable
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.pretrained import loads
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.files import create, is_trusted, open_append, parse_json, read_bytes
from tinyllm.utils.files import replace as replace_file

NAME, TOKENIZER = "journal.jsonl", "tokenizer.json"
FORMAT = 1
LARGEST = 512 << 20
"""Size limit of a journal in bytes; it has the hashes of all blocks, and a line of 0.5 kB per shard."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a split has come.

    Attributes:
        ids: its files.
        position: the first piece of its documents that is not in them.
        stats: statistics of the text in them.
        read: bytes read, for the display of progress.
        is_complete: the split is finished.
    """

    ids: Durable = field(default_factory=Durable)
    position: Position = field(default_factory=Position)
    stats: EncodingStats = field(default_factory=EncodingStats)
    read: int = 0
    is_complete: bool = False


@dataclass(kw_only=True)
class Finished:
    """The content of a journal.

    Attributes:
        identity: what is prepared and from which files.
        tokenizer_sha256: of tokenizer.json; None: it is not learned yet.
        facts: what was found out before the first ids were written, as :meth:`Journal.begin` got it.
        splits: by name.
    """

    identity: Any = None
    tokenizer_sha256: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Progress] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Take in a line."""
        if "identity" in record:
            self.identity = record["identity"]
        elif "tokenizer" in record:
            self.tokenizer_sha256, self.facts = record["tokenizer"], record["facts"]
        else:
            before = self.splits.get(record["split"], Progress())
            ids = record["ids"] | {"blocks": (*before.ids.blocks, *record["ids"]["blocks"])}
            self.splits[record["split"]] = Progress(
                ids=Durable(**ids),
                position=Position(*record["position"]),
                stats=EncodingStats(*record["stats"]),
                read=record["read"],
                is_complete=record["is_complete"],
            )


class Journal:
    """The journal in a working folder.

    Args:
        folder: exists, and has a journal that :func:`adoptable` accepts, or none.
        identity: JSON value that says what is prepared and from which files.
    """

    def __init__(self, folder: Path, identity: Any) -> None:
        self.folder = folder
        self.finished = Finished()
        path = folder / NAME
        if path.exists():
            content = read_bytes(path, largest=LARGEST)
            for record in records(content):
                self.finished.add(record)
            end = content.rfind(b"\n") + 1
            os.truncate(path, end)  # a line that a kill cut off
        else:
            create(path).close()
        if self.finished.identity is None:
            self._append({"format": FORMAT, "identity": identity})

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if it is not learned yet."""
        if self.finished.tokenizer_sha256 is None:
            return None
        return loads(read_bytes(self.folder / TOKENIZER).decode())

    def begin(self, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
        """Note that the tokenizer is learned, and what else is known before the first ids."""
        content = tokenizer.to_json().encode()
        replace_file(self.folder / TOKENIZER, lambda stream: stream.write(content))
        self._append({"tokenizer": hashlib.sha256(content).hexdigest(), "facts": facts})

    def progress(self, split: str) -> Progress:
        """How far a split has come."""
        return self.finished.splits.get(split, Progress())

    def end_shard(self, split: str, progress: Progress) -> None:
        """Note how far a split has come."""
        known = len(self.progress(split).ids.blocks)
        ids = replace(progress.ids, blocks=progress.ids.blocks[known:])
        record = {"split": split, **asdict(progress), "ids": asdict(ids), "position": list(progress.position)}
        record["stats"] = list(asdict(progress.stats).values())
        self._append(record)
        fault("prepare:shard")

    def remove(self) -> None:
        """Remove it: the cache is complete."""
        (self.folder / NAME).unlink()

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with open_append(self.folder / NAME) as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.finished.add(parse_json(line))


def is_worth_keeping(folder: Path) -> bool:
    """Whether a killed preparation got as far as its tokenizer."""
    return (folder / NAME).is_file() and (folder / TOKENIZER).is_file()


def records(content: bytes) -> Iterator[dict[str, Any]]:
    """The complete lines of a journal.

    Raises:
        ValueError: a line is not JSON.
    """
    for line in content.split(b"\n")[:-1]:
        yield parse_json(line)


def adoptable(folder: Path, identity: Any) -> bool:
    """Whether a preparation can go on in a folder that a killed one of the same data left.

    It cannot if the files have been touched since: what is in the folder may be of a text that they had in between.
    """
    try:
        names = {path.name for path in folder.iterdir()}
        if "meta.json" in names or not all(is_trusted(folder / name, root=folder.parent) for name in ("", *names)):
            return False
        finished, lines = Finished(), records(read_bytes(folder / NAME, largest=LARGEST))
        if (first := next(lines)).get("format") != FORMAT:
            return False
        for record in (first, *lines):
            finished.add(record)
        if finished.identity != identity or finished.tokenizer_sha256 is None:
            return False
        return hashlib.sha256(read_bytes(folder / TOKENIZER)).hexdigest() == finished.tokenizer_sha256
    except Exception:  # of a damaged journal anything can be expected, and starting over is always right
        return False
