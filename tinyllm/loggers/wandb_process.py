"""The process that talks to Weights & Biases. :mod:`tinyllm.loggers.wandb` runs this file and sends it JSON lines.

The first line describes the run to open, then come its records, and the last line says how the run ended. If that last
line is missing, the training program was killed. This file imports nothing from tinyllm, so that it starts as fast as
wandb itself.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Importing may fail in any way and may print; the failure is reported through the channel that main() opens.
wandb: Any
try:
    import wandb

    IMPORT_ERROR: Exception | None = None
except Exception as error:
    IMPORT_ERROR = error

Message = dict[str, Any]
Tell = Callable[..., None]
FLUSH_S = 1.0
"""Seconds until wandb writes a record from memory to its file."""
MIN_FREE_BYTES = 2**16
"""Below this much free disk space, wandb silently loses records."""


def main() -> None:
    """Open the run, log its records, close it."""
    incoming, tell = channels()
    try:
        if IMPORT_ERROR is not None:
            raise IMPORT_ERROR
        recorder = Recorder(next(incoming), tell)
        for message in incoming:
            if "end" in message:
                recorder.finish(message["end"], message["samples"])
                return
            if "tables" in message:
                recorder.log_report(message["tables"], message["page"])
            else:
                recorder.log(message["record"], message["samples"])
        recorder.finish({"status": "killed"}, [])
    except Exception as error:
        tell(problem=f"{type(error).__name__}: {error}")


class Recorder:
    """One wandb run. It continues offline when the server or wandb's own service process fails.

    Args:
        order: the run to open, as :class:`tinyllm.loggers.wandb.Wandb` describes it.
        tell: sends a message to the training process.

    Raises:
        Exception: not even an offline run can be opened.
    """

    def __init__(self, order: Message, tell: Tell) -> None:
        self._order, self._tell = order, tell
        self._disk_is_full = False
        try:
            self._open(order["mode"])
        except Exception as error:
            if order["mode"] == "offline":
                raise
            self._fall_back(error)

    def log(self, record: dict[str, float], samples: list[tuple[int, str]]) -> None:
        """Log a record and the samples drawn since the previous one."""
        directory = self._order["init"]["dir"]
        if not self._disk_is_full and shutil.disk_usage(directory).free < MIN_FREE_BYTES:
            self._disk_is_full = True
            self._tell(problem=f"no space is left in {directory}")
        try:
            self._log(record, samples)
        except Exception as error:
            self._fall_back(error)
            self._log(record, samples)

    def log_report(self, tables: dict[str, dict[str, Any]], page: str) -> None:
        """Log tables (``columns`` and ``data``) by name, and the HTML file at path ``page`` as ``report``."""
        shown: dict[str, Any] = {name: wandb.Table(allow_mixed_types=True, **table) for name, table in tables.items()}
        with open(page, encoding="utf-8") as file:
            shown["report"] = wandb.Html(file, inject=False)
        self._run.log(shown)

    def finish(self, summary: dict[str, Any], samples: list[tuple[int, str]]) -> None:
        """Write the summary and wait for wandb to write and upload everything, up to ``finish_timeout`` seconds."""
        deadline = threading.Timer(self._order["finish_timeout"], os._exit, [1])
        deadline.daemon = True
        deadline.start()
        if samples:
            self._log({}, samples)
        self._run.summary.update(summary)
        self._run.finish(exit_code=0 if summary["status"] in ("finished", "interrupted") else 1)

    def _open(self, mode: str, reason: str = "") -> None:
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
            if hasattr(settings, name):  # private settings of wandb come and go between versions
                setattr(settings, name, value)
        self._run = wandb.init(
            **self._order["init"],
            config=self._order["config"],
            mode="offline" if mode == "offline" else "online",
            resume="allow",
            settings=settings,
        )
        # wandb drops records whose internal step goes back. With a custom x axis, a resumed run may repeat steps.
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
        """Reopen the run offline, with a new wandb service in place of the failed one."""
        for _ in range(2):  # with a dead service, the first teardown raises and only then forgets it
            try:
                wandb.teardown()
                break
            except Exception:
                continue
        self._open("offline", reason=str(error).split("\n")[0].rstrip("."))


def channels() -> tuple[Iterator[Message], Tell]:
    """Take over stdin and stdout for JSON lines; anything else this process or its children print is discarded."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    answers = os.fdopen(outgoing, "w", encoding="utf-8")

    def tell(**message: Any) -> None:
        with contextlib.suppress(OSError):  # the training process may be gone
            print(json.dumps(message), file=answers, flush=True)

    return map(json.loads, os.fdopen(incoming, encoding="utf-8")), tell


if __name__ == "__main__":
    main()
    sys.exit(0)
