"""Differences between operating systems: signals, flags of ``os.open``, peak memory, usable CPUs.

Windows lacks ``fcntl``, ``resource``, ``fork``, CPU affinity, SIGUSR1 and O_NOFOLLOW. Only this file and
``tinyllm.utils.locks`` deal with that.
"""

import ctypes
import importlib
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def module(name: str) -> Any:
    """A module of the standard library, or None on platforms without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def open_flags(*names: str) -> int:
    """Flags for ``os.open``, skipping those the platform lacks; always binary, never inherited by child processes."""
    flags = 0
    for name in (*names, "O_CLOEXEC", "O_NOINHERIT", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return flags


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """The signals of these names that the platform has."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


def kill_process(pid: int) -> None:
    """SIGKILL a process, and its whole group if it leads one; ignores a process that is gone."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg") and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def start_session() -> None:
    """Make this process the leader of a session of its own, which no signal of the terminal reaches."""
    if hasattr(os, "setsid"):
        os.setsid()


@contextmanager
def blocked_signals(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Block signals inside the block and deliver them after it. Processes started inside inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals(numbers: tuple[signal.Signals, ...]) -> None:
    """Take back a block that was inherited; signals that came meanwhile are delivered now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def ignore(numbers: tuple[signal.Signals, ...]) -> None:
    """Ignore signals from now on, including those that :func:`blocked_signals` blocks."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def usable_cpus() -> int:
    """The number of CPUs this process may use, by its affinity and by the CPU quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows lack it
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


PROC, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _cgroup_quota() -> float | None:
    """The smallest CPU quota of the control groups of this process, in CPUs; None: no limit."""
    try:
        lines = PROC.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS  # version 1: a tree per set of controllers
        group = Path(path.strip("/"))
        # Inside a container the path may be the host's and not exist; the container's own group is then the root.
        for folder in {root / group, *(root / parent for parent in group.parents), root, CGROUPS / "cpu"}:
            quotas.append(_quota_of(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            texts = " ".join((group / name).read_text(encoding="ascii") for name in names).split()
            quota, period = float(texts[0]), float(texts[1])  # "max" and -1 mean no limit
            return quota / period if quota > 0 and period > 0 else None
    return None


def peak_resident_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 if the platform does not report it."""
    resource = module("resource")
    if resource is not None:
        scale = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * scale
    return _peak_on_windows() if sys.platform == "win32" else 0


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("unused", ctypes.c_size_t * 7),
    )


def _peak_on_windows() -> int:
    api: Any = getattr(ctypes, "windll").kernel32  # noqa: B009  (mypy knows the attribute on Windows only)
    memory = _ProcessMemory(cb=ctypes.sizeof(_ProcessMemory))
    api.GetCurrentProcess.restype = ctypes.c_void_p
    api.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    succeeded = api.K32GetProcessMemoryInfo(api.GetCurrentProcess(), ctypes.byref(memory), memory.cb)
    return int(memory.PeakWorkingSetSize) if succeeded else 0
