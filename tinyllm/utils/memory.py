"""Out-of-memory errors, reported in one line that names the task and the size of the allocation."""

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
"""Messages of torch, NumPy and the C library. torch has an exception class for GPU memory only."""
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
AMOUNT = re.compile(r"allocate (\d+(?:\.\d+)?) ?([kmgt]?)i?b(?:ytes)?\b", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or a GPU ran out of memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and bool(WORDS.search(str(error)))


def failed_allocation(error: BaseException) -> str:
    """The size of the failed allocation if the error has it, else the error itself."""
    match = AMOUNT.search(str(error))
    if match is None:
        text = one_line(str(error))[:120]
        return f"{type(error).__name__}: {text}" if text else "an allocation failed"
    return f"{quantity(float(match[1]) * UNITS[match[2].lower()], 'B')} more were requested"


def machine_memory() -> int | None:
    """Bytes this process may use: RAM and swap, limited by its container and ``ulimit -v``; None if unknown."""
    limits = []
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        limits.append(sum(1024 * int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal")))
    with suppress(OSError, ValueError):  # "max" means no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    resource = module("resource")
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] * (soft != resource.RLIM_INFINITY)
    return min(limits, default=None)


@contextmanager
def memory_for(what: str, *, hint: str) -> Iterator[None]:
    """Report an out-of-memory error inside the block.

    Args:
        what: the task of the block, for the message.
        hint: how to need less memory.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees the tensors in them, or reporting would run out too
        raise UserError("not enough memory", file=what, hint=f"{failed_allocation(error)}; {hint}") from error
