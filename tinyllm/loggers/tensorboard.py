"""TensorBoard's event files, written with what torch brings for it."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.runs.directory import METRICS
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.training.callbacks import Axis, Callback, Outcome, RunInfo

ABSENT = "tensorboard is not installed, so the run goes on without it: pip install 'tinyllm[tensorboard]'"
WHOLE: dict[Axis, float] = {"step": 1, "tokens": 1, "flops": 1e-6, "seconds": 1e3}
"""TensorBoard counts in whole numbers of 64 bits: steps, tokens, millions of FLOPs, milliseconds."""


class TensorBoard(Callback):
    """Writes what stands in ``metrics.jsonl``, the samples and the configuration as event files.

    The wall time of an event is the start of the run plus its seconds of training, so ``RELATIVE`` in TensorBoard
    has no gap where a run was interrupted. A resumed run tells TensorBoard to forget what came after its checkpoint.

    Args:
        x_axis: what ``STEP`` means in TensorBoard, see :data:`WHOLE` for the units.
        dir: where the files go; None: ``tensorboard`` in the run directory.
    """

    def __init__(self, *, x_axis: Axis, dir: str | None) -> None:
        self._x_axis, self._dir = x_axis, dir
        self._file: EventFile | None = None
        self._samples: list[tuple[int, str]] = []
        self._x = 0
        self._started: float | None = None
        self._continued = False

    def on_start(self, info: RunInfo) -> None:
        records = [] if self._continued else read_metrics(info.run_dir / METRICS)
        if records:
            self._started = time.time() - records[-1]["seconds"]
        try:
            directory = Path(self._dir) if self._dir else info.run_dir / "tensorboard"
            self._file = EventFile(directory, forget_from=self._x + 1 if self._continued else 0)
            self._file.text("config", json.dumps(info.config, indent=2), self._x, time.time())
        except ImportError:
            self.report(ABSENT)
        except OSError as error:
            self._give_up(error)
        for record in records:
            self.on_record(record)

    def on_sample(self, step: int, text: str) -> None:
        self._samples.append((step, text))

    def on_record(self, record: dict[str, float]) -> None:
        if self._file is None:
            return
        self._x = round(record[self._x_axis] * WHOLE[self._x_axis])
        if self._started is None:
            self._started = time.time() - record["seconds"]
        at = self._started + record["seconds"]
        try:
            for step, text in self._samples:
                self._file.text("samples", f"step {step}\n{text}", self._x, at)
            self._file.scalars({name: value for name, value in record.items() if value is not None}, self._x, at)
        except OSError as error:
            self._give_up(error)
        self._samples = []

    def on_end(self, outcome: Outcome) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

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
        """Go on without TensorBoard, after a full disk for example."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.report(f"tensorboard: {error.strerror or error}; {METRICS} has every record")


class EventFile:
    """One event file. It is written at once and by the calling thread; a killed run loses nothing of it.

    Args:
        directory: made if it is missing; the file is the last one in it, by name.
        forget_from: what files before this one hold from here on is not shown any more.

    Raises:
        OSError: the file cannot be made, here and in the methods: cannot be written.
        ImportError: tensorboard is not installed.
    """

    def __init__(self, directory: Path, *, forget_from: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file: BinaryIO = _new_file(directory)
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2", wall_time=time.time())
        start = SessionLog(status=SessionLog.START)
        self._write(session_log=start, step=forget_from, wall_time=time.time())

    def scalars(self, values: Mapping[str, float], x: int, wall_time: float) -> None:
        """Write numbers of one moment, in single precision; TensorBoard does not show doubles."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import scalar

        summary = Summary()
        for name, value in values.items():
            summary.MergeFrom(scalar(name, value))
        self._write(summary=summary, step=x, wall_time=wall_time)

    def text(self, name: str, text: str, x: int, wall_time: float) -> None:
        """Write a text, which is shown as it is and not as Markdown."""
        from torch.utils.tensorboard.summary import text as text_summary

        as_code = "\n".join(f"    {line}" for line in text.split("\n"))
        self._write(summary=text_summary(name, as_code), step=x, wall_time=wall_time)

    def close(self) -> None:
        """Close the file, whether or not what is left to write can be written."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(**fields).SerializeToString())
        self._file.flush()


def _new_file(directory: Path) -> BinaryIO:
    """A file whose name comes after those of all event files there."""
    stamps = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.*")]
    stamp = max([int(time.time()), *(int(one) + 1 for one in stamps if one.isdecimal())])
    return (directory / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0").open("xb")
