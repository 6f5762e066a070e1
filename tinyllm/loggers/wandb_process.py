"""The process that talks to Weights & Biases. :mod:`tinyllm.loggers.wandb` runs this file and feeds it JSON lines.

The first line says what run to open; then come records; the last line tells how the run ended. Without that last
line the program was killed. Nothing of tinyllm is imported here, so that it starts as fast as wandb itself.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

Order = dict[str, Any]
Tell = Callable[..., None]
FLUSH_S = 1.0
"""Seconds that a record may stay in memory before it is in wandb's file."""
SPARE = 2**16
"""Bytes free on a disk below which wandb loses records, which it does not say."""


def main() -> None:
    """Open the run, log what comes, close the run."""
    orders, tell = channels()
    try:
        recorder = Recorder(next(orders), tell)
        for order in orders:
            if "end" in order:
                recorder.finish(order["end"], order["samples"])
                return
            if "tables" in order:
                recorder.show(order["tables"], order["page"])
            else:
                recorder.log(order["record"], order["samples"])
        recorder.finish({"status": "killed"}, [])
    except Exception as error:
        tell(problem=f"{type(error).__name__}: {error}")


class Recorder:
    """One run of wandb, which goes on offline when the server or wandb's own service fails.

    Args:
        order: what run to open.
        tell: takes what the person should know.

    Raises:
        Exception: not even an offline run can be opened.
    """

    def __init__(self, order: Order, tell: Tell) -> None:
        self._order, self._tell = order, tell
        self._full = False
        try:
            self._open(order["mode"])
        except Exception as error:
            if order["mode"] == "offline":
                raise
            self._fall_back(error)

    def log(self, record: dict[str, float], samples: list[tuple[int, str]]) -> None:
        """Log a record with the samples drawn since the last one."""
        directory = self._order["init"]["dir"]
        if not self._full and shutil.disk_usage(directory).free < SPARE:
            self._full = True
            self._tell(problem=f"no space is left in {directory}")
        try:
            self._log(record, samples)
        except Exception as error:
            self._fall_back(error)
            self._log(record, samples)

    def show(self, tables: dict[str, dict[str, Any]], page: str) -> None:
        """Log tables (``columns`` and ``data``) by name, and a page of HTML that lies at a path."""
        import wandb

        shown: dict[str, Any] = {name: wandb.Table(allow_mixed_types=True, **one) for name, one in tables.items()}
        with open(page, encoding="utf-8") as file:
            shown["report"] = wandb.Html(file, inject=False)
        self._run.log(shown)

    def finish(self, summary: dict[str, Any], samples: list[tuple[int, str]]) -> None:
        """Write the summary and wait until wandb has written and uploaded everything, or the time is over."""
        deadline = threading.Timer(self._order["finish_timeout"], os._exit, [1])
        deadline.daemon = True
        deadline.start()
        if samples:
            self._log({}, samples)
        self._run.summary.update(summary)
        self._run.finish(exit_code=0 if summary["status"] in ("finished", "interrupted") else 1)

    def _open(self, mode: str, reason: str = "") -> None:
        import wandb

        settings = wandb.Settings()
        wanted = {
            "init_timeout": self._order["init_timeout"],
            "console": "off",
            "save_code": False,
            "program": "tinyllm.train",
            "x_stats_pid": self._order["pid"],
            "x_transaction_log_flush_interval": FLUSH_S,
        }
        for name, value in wanted.items():
            if hasattr(settings, name):  # they are wandb's own affair and come and go
                setattr(settings, name, value)
        self._run = wandb.init(
            **self._order["init"],
            config=self._order["config"],
            mode="offline" if mode == "offline" else "online",
            resume="allow",
            settings=settings,
        )
        # Against an axis of its own a record counts even when a rewound run gets to the same step a second time.
        axis = self._order["x_axis"]
        self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=axis)
        self._table = wandb.Table(columns=["step", "text"], log_mode="INCREMENTAL")
        if mode == "offline":
            self._tell(offline=os.path.dirname(self._run.dir), reason=reason)
        else:
            self._tell(url=self._run.url)

    def _log(self, record: dict[str, float], samples: list[tuple[int, str]]) -> None:
        for sample in samples:
            self._table.add_data(*sample)
        self._run.log(record | ({"samples": self._table} if samples else {}))

    def _fall_back(self, error: Exception) -> None:
        """Open the run offline, with a service of its own in the place of the one that failed."""
        import wandb

        for _ in range(2):  # of a service that is dead the first time only finds that out
            try:
                wandb.teardown()
                break
            except Exception:
                continue
        self._open("offline", reason=str(error).split("\n")[0].rstrip("."))


def channels() -> tuple[Iterator[Order], Tell]:
    """What comes in and how to answer; whatever else this process or its children print goes nowhere."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    answers = os.fdopen(outgoing, "w", encoding="utf-8")

    def tell(**message: Any) -> None:
        with contextlib.suppress(OSError):  # whoever asked may be gone
            print(json.dumps(message), file=answers, flush=True)

    return map(json.loads, os.fdopen(incoming, encoding="utf-8")), tell


if __name__ == "__main__":
    main()
    sys.exit(0)
