"""Running out of memory, as a line that says what needed how much."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyllm.errors import UserError, one_line
from tinyllm.utils.platforms import module
from tinyllm.utils.text import quantity

WORDS = re.compile(
    r"(?:can't|cannot|not enough|unable to|tried to|failed to|could not) (?:re)?(?:allocate|map segment)"
    r"|not enough memory|out of memory|alloc_cpu|bad_alloc|Storage size calculation overflowed"
    r"|unable to mmap|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""What torch, numpy and the C library say. torch has an exception of its own for GPUs alone."""
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
AMOUNT = re.compile(r"allocate (\d+(?:\.\d+)?) ?([kmgt]?)i?b(?:ytes)?\b", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and bool(WORDS.search(str(error)))


def asked_for(error: BaseException) -> str:
    """How much was asked for in vain, where the error says so."""
    found = AMOUNT.search(str(error))
    if found is None:
        text = one_line(str(error))[:120]
        return f"{type(error).__name__}: {text}" if text else "no more was there"
    return f"{quantity(float(found[1]) * UNITS[found[2].lower()], 'B')} more were asked for"


def machine_memory() -> int | None:
    """Bytes that this process may have: memory and swap, a container's share, ``ulimit -v``; None: not known."""
    limits = []
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        limits.append(sum(1024 * int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal")))
    with suppress(OSError, ValueError):  # "max" is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    resource = module("resource")
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] * (soft != resource.RLIM_INFINITY)
    return min(limits, default=None)


@contextmanager
def memory_for(what: str, *, hint: str) -> Iterator[None]:
    """Tell what was being done when memory ran out in the block, and what needs less of it.

    Raises:
        UserError: there was too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # what they hold is needed to tell of it
        raise UserError("not enough memory", file=what, hint=f"{asked_for(error)}; {hint}") from error
