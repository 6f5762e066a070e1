"""The files that a training run passes: every file of ours with a function called before the first step has ended.

``python -m tests.support.files_passed attn=mla`` prints how many there are and their names in the order of the first
call. It measures how much a newcomer reads to follow a command from the command line through one optimizer step. A file
with a ``>`` calls on into another file of ours; the others are leaves, which can be taken by their name and docstring.
Calls made while a module is imported do not count. The data should be in the token cache: preparing them passes more.
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


def files_passed(arguments: Sequence[str]) -> dict[str, bool]:
    """Files under ``tinyllm/`` that ``python -m tinyllm.train <arguments>`` passes, in the order of the first call.

    Returns:
        For each file, whether it calls on into another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.support.files_passed", "--list", *arguments, f"run.dir={folder}/run"]
        shown = subprocess.run(command, cwd=PACKAGE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [line.split() for line in shown.splitlines() if line.startswith("passed ")]
    return {name: calls_on == "True" for _, name, calls_on in lines}


class Recorder:
    """A profile function that notes the files whose functions are called."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        name = self._name(frame.f_code)
        if name is None:
            return
        if event == "call" and not importing(frame):
            self.passed.setdefault(name, False)
            caller = self._caller(frame)
            if caller is not None and caller != name:
                self.passed[caller] = True
        elif event == "return" and (name, frame.f_code.co_qualname) == LAST:
            print(*(f"passed {name} {calls_on}" for name, calls_on in self.passed.items()), sep="\n", flush=True)
            os._exit(0)

    def _name(self, code: CodeType) -> str | None:
        """The file of a function relative to the package; None: not ours, or the body of a module or a class."""
        if code not in self._names:
            path = Path(code.co_filename)
            is_ours = code.co_flags & inspect.CO_OPTIMIZED and path.is_relative_to(PACKAGE)
            self._names[code] = path.relative_to(PACKAGE).as_posix() if is_ours else None
        return self._names[code]

    def _caller(self, frame: FrameType) -> str | None:
        """The file of ours from which a function was called, directly or through a library."""
        above = frame.f_back
        while above is not None:
            name = self._name(above.f_code)
            if name is not None:
                return name
            above = above.f_back
        return None


def importing(frame: FrameType | None) -> bool:
    """Whether a module of the package is being imported on this thread."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"].startswith("tinyllm"):
            return True
        frame = frame.f_back
    return False


def record(arguments: Sequence[str]) -> None:
    """Train in this process, print a line for each file at the end of the first step, and exit."""
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    sys.argv = ["train", *arguments]
    runpy.run_module("tinyllm.train", run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--list"]:
        record(sys.argv[2:])
    else:
        files = files_passed(sys.argv[1:])
        print(f"{len(files)} files, {sum(files.values())} of which call on into others")
        print(*(f"{'>' if calls_on else ' '} {name}" for name, calls_on in files.items()), sep="\n")
