"""The process that started this one: when it ends, this one is asked to stop."""

import os
import signal
import threading
import time

PARENT = "TINYLLM_PARENT"
"""Environment variable: the process id of a program that starts trainings and wants none of them to outlive it."""
LOOK_EVERY_S = 0.5


def end_with_parent() -> None:
    """Ask this process to stop, once, by SIGTERM, when the one that started it ends, however that came about.

    Linux can send a signal then by itself, but to the child of a process with several threads as often as one of them
    ends, and a second signal means to leave at once.
    """
    _watch(os.getppid())


def end_with_caller() -> None:
    """The same, if the program that started this one asked for it by :data:`PARENT`.

    The variable is taken out of the environment: processes that this one starts have it as their parent.
    """
    caller = os.environ.pop(PARENT, "")
    if caller.isdecimal():
        _watch(int(caller))


def _watch(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
