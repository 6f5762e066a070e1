"""Runs programs in a Python stripped of what Windows lacks: ``python -m tests.utils.hidden_posix tinyllm.train …``."""

import builtins
import importlib
import os
import shutil
import signal
import sys
from types import SimpleNamespace
from typing import Any

MODULES = ("fcntl", "resource", "readline", "termios", "pwd", "grp")
OF_OS = (
    *("fork", "forkpty", "register_at_fork", "sched_getaffinity", "getpgrp", "setpgid", "setsid", "killpg"),
    *("geteuid", "getuid", "getgid", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "statvfs", "fchmod"),
)
OF_SIGNAL = (
    *("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGALRM", "pthread_sigmask"),
    *("SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "setitimer"),
)
"""Excluding what the standard library itself needs on this platform."""


def hide() -> None:
    """Remove all of it, after importing the libraries, whose builds for this platform need it."""
    import hydra  # noqa: F401
    import torch.distributed.checkpoint
    import torch.multiprocessing
    import torch.utils.data  # noqa: F401

    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return original(name, *rest, **more)

    builtins.__import__ = without
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    statvfs = os.statvfs

    def disk_usage(path: str) -> SimpleNamespace:
        found = statvfs(path)
        return SimpleNamespace(free=found.f_bavail * found.f_frsize)

    shutil.disk_usage = disk_usage  # type: ignore[assignment]  # Windows has it, without statvfs
    for name in OF_OS:
        vars(os).pop(name, None)
    for name in OF_SIGNAL:
        vars(signal).pop(name, None)
    kinds: Any = signal.Signals
    for name in OF_SIGNAL:
        kinds._member_map_.pop(name, None)


def run_all(arguments: list[str]) -> None:
    """Run programs one after another, separated by ``+``: ``tinyllm.train <settings> + tinyllm.generate …``."""
    while arguments:
        end = arguments.index("+") if "+" in arguments else len(arguments)
        sys.argv, arguments = arguments[:end], arguments[end + 1 :]
        try:
            importlib.import_module(sys.argv[0]).main()
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    hide()
    run_all(sys.argv[1:])
