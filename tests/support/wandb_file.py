"""Reads the file that wandb writes offline: protobuf records in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768
FULL, LAST = 1, 4


def messages(path: Path) -> Iterator[bytes]:
    """The messages of the file; what was not written to its end is left out."""
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
    """What stands in the one ``.wandb`` file below a directory of a run."""

    def __init__(self, directory: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

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
        """The history without what wandb adds."""
        kept = ({k: v for k, v in row.items() if not k.startswith(("samples.", "_"))} for row in self.history)
        return [row for row in kept if row]

    def samples(self) -> list[list[Any]]:
        """The rows of the samples' table, which lie in a file for every time one was added."""
        files = [self.directory / "files" / row["samples.path"] for row in self.history if "samples.path" in row]
        return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["data"]]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
