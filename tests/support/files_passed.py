"""The files that a training run passes: every file of ours with a function called before the first step has ended.

``python -m tests.support.files_passed attn=mla`` prints how many there are, and their names in the order of the first
call. It measures how much a newcomer reads to follow a command from the command line through one optimizer step. What
runs while a module is imported does not count.
"""

import inspect
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = Path(__file__).parents[2] / "tinyllm"
LAST = ("training/trainer.py", "Trainer.train_step")
"""File and function whose first return ends the count."""


def files_passed(arguments: Sequence[str]) -> list[str]:
    """Files under ``tinyllm/`` that ``python -m tinyllm.train <arguments>`` passes, in the order of the first call."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.support.files_passed", "--list", *arguments, f"run.dir={folder}/run"]
        shown = subprocess.run(command, cwd=PACKAGE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.removeprefix("passed ") for line in shown.splitlines() if line.startswith("passed ")]


def record(arguments: Sequence[str]) -> None:
    """Train in this process, print a line for each file at the end of the first step, and exit."""
    passed: dict[str, None] = {}
    seen: dict[CodeType, str | None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in seen:
            seen[code] = relative(code)
        name = seen[code]
        if name is None:
            return
        if event == "call" and name not in passed and not importing(frame):
            passed[name] = None
        elif event == "return" and (name, code.co_qualname) == LAST:
            print(*(f"passed {name}" for name in passed), sep="\n", flush=True)
            os._exit(0)

    threading.setprofile(note)
    sys.setprofile(note)
    sys.argv = ["train", *arguments]
    runpy.run_module("tinyllm.train", run_name="__main__")


def relative(code: CodeType) -> str | None:
    """The file of a function relative to the package; None: a file that is not ours, a module or a class body."""
    path = Path(code.co_filename)
    if not code.co_flags & inspect.CO_OPTIMIZED:
        return None
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None


def importing(frame: FrameType | None) -> bool:
    """Whether a module of the package is being imported on this thread."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"].startswith("tinyllm"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["--list"]:
        record(sys.argv[2:])
    else:
        found = files_passed(sys.argv[1:])
        print(len(found), *found, sep="\n")
