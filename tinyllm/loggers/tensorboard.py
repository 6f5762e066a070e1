"""TensorBoard event files, written with the record writer that ships with torch."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.errors import UserError
from tinyllm.runs.layout import METRICS
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.training.callbacks import Axis, Callback, Outcome, RunInfo
from tinyllm.utils.late_imports import library

INSTALL = "pip install 'tinyllm[tensorboard]'"
NOT_INSTALLED = f"tensorboard is not installed, so the run continues without it: {INSTALL}"
UNITS: dict[Axis, float] = {"step": 1, "tokens": 1, "flops": 1e-6, "seconds": 1e3}
"""Factor from an axis to TensorBoard's 64-bit integer steps: steps, tokens, millions of FLOPs, milliseconds."""


class TensorBoard(Callback):
    """Writes the records of ``metrics.jsonl``, the samples and the configuration as event files.

    An event's wall time is the start of the run plus its training seconds, so the ``RELATIVE`` axis shows no gap where
    a run was interrupted. A resumed run makes TensorBoard discard what came after its checkpoint.

    Args:
        x_axis: what TensorBoard's ``STEP`` axis shows; see :data:`UNITS`.
        dir: directory of the event files; None: ``tensorboard`` in the run directory.
    """

    def __init__(self, *, x_axis: Axis, dir: str | None) -> None:
        self._x_axis, self._dir = x_axis, dir
        self._file: EventFile | None = None
        self._samples: list[tuple[int, str]] = []
        self._x = 0
        self._started: float | None = None
        self._continued = False

    def on_start(self, info: RunInfo) -> None:
        # A run that was logged differently so far (or not at all) is written again from its first record.
        records = [] if self._continued else read_metrics(info.run_dir / METRICS)
        if records:
            self._started = time.time() - records[-1]["seconds"]
        try:
            directory = Path(self._dir) if self._dir else info.run_dir / "tensorboard"
            self._file = EventFile(directory, discard_from=self._x + 1 if self._continued else 0)
            self._file.text("config", json.dumps(info.config, indent=2), self._x, time.time())
        except UserError:
            self.report(NOT_INSTALLED)
        except OSError as error:
            self._give_up(error)
        for record in records:
            self.on_record(record)

    def on_sample(self, step: int, text: str) -> None:
        self._samples.append((step, text))

    def on_record(self, record: dict[str, float]) -> None:
        if self._file is None:
            return
        self._x = round(record[self._x_axis] * UNITS[self._x_axis])
        if self._started is None:
            self._started = time.time() - record["seconds"]
        wall_time = self._started + record["seconds"]
        try:
            for step, text in self._samples:
                self._file.text("samples", f"step {step}\n{text}", self._x, wall_time)
            values = {name: value for name, value in record.items() if value is not None}
            self._file.scalars(values, self._x, wall_time)
        except OSError as error:
            self._give_up(error)
        self._samples = []

    def on_end(self, outcome: Outcome) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        if self._started is None:
            return {}
        return {"tensorboard": {"x_axis": self._x_axis, "x": self._x, "started": self._started}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state.get("tensorboard", {})
        self._continued = saved.get("x_axis") == self._x_axis
        if self._continued:
            self._x, self._started = saved["x"], saved["started"]

    def _give_up(self, error: OSError) -> None:
        """Continue the run without TensorBoard, for example after the disk filled up."""
        self._close()
        self.report(f"tensorboard: {error.strerror or error}; {METRICS} has every record")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class EventFile:
    """One event file. Events are written synchronously by the calling thread, so a killed run loses none.

    Args:
        directory: created if it is missing. The new file sorts after all event files in it.
        discard_from: TensorBoard hides the events of earlier files from this step on.

    Raises:
        UserError: tensorboard is not installed.
        OSError: the file cannot be created; in the methods, it cannot be written.
    """

    def __init__(self, directory: Path, *, discard_from: int) -> None:
        self._protos = library("torch.utils.tensorboard.summary", hint=INSTALL)
        self._events = library("tensorboard.compat.proto.event_pb2", hint=INSTALL)
        writer = library("torch.utils.tensorboard", hint=INSTALL).RecordWriter
        directory.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = _new_file(directory)
        self._writer = writer(self._file)
        self._write(file_version="brain.Event:2", wall_time=time.time())
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(session_log=start, step=discard_from, wall_time=time.time())

    def scalars(self, values: Mapping[str, float], x: int, wall_time: float) -> None:
        """Write the metrics of one point in time, in single precision: TensorBoard does not show doubles."""
        summary = self._protos.Summary()
        for name, value in values.items():
            summary.MergeFrom(self._protos.scalar(name, value))
        self._write(summary=summary, step=x, wall_time=wall_time)

    def text(self, name: str, text: str, x: int, wall_time: float) -> None:
        """Write a string verbatim. TensorBoard renders Markdown, so it is indented as a code block."""
        as_code = "\n".join(f"    {line}" for line in text.split("\n"))
        self._write(summary=self._protos.text(name, as_code), step=x, wall_time=wall_time)

    def close(self) -> None:
        """Close the file; an error while flushing its buffer is ignored."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._events.Event(**fields).SerializeToString())
        self._file.flush()


def _new_file(directory: Path) -> BinaryIO:
    """Create an event file whose name sorts after every event file in ``directory``."""
    stamps = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.*")]
    stamp = max([int(time.time()), *(int(old) + 1 for old in stamps if old.isdecimal())])
    return (directory / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0").open("xb")
