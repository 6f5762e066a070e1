"""Reads wandb's offline file: protobuf records in LevelDB's log format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768
FULL, LAST = 1, 4


def messages(path: Path) -> Iterator[bytes]:
    """Messages of the file, without one that is cut off at the end."""
    data = path.read_bytes()
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # too small for another record; the block ends with zeros
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (FULL, LAST):
            yield parts
            parts = b""


class WandbRun:
    """The contents of the single ``.wandb`` file in a run's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (file,) = directory.glob("run-*.wandb")
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.axes: set[str] = set()
        self.exit_code: int | None = None
        for message in messages(file):
            record = Record.FromString(message)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _items(record.run.config.update)
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "metric" and record.metric.step_metric:
                self.axes.add(record.metric.step_metric)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def metrics(self) -> list[dict[str, Any]]:
        """The history without wandb's own fields."""
        kept = ({k: v for k, v in row.items() if not k.startswith(("samples.", "_"))} for row in self.history)
        return [row for row in kept if row]

    def samples(self) -> list[list[Any]]:
        """Rows of the samples table; every addition is in a file of its own."""
        files = [self.directory / "files" / row["samples.path"] for row in self.history if "samples.path" in row]
        return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["data"]]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
