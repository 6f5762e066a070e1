"""How the C library's allocator treats the large tensors that every training step makes and frees."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation instead of giving it back to the system.

    By default every tensor above some size is mapped anew, and the system fills it with zeros page by page as it
    is first touched; on a CPU that can take longer than the arithmetic (benchmarks/train_speed.py). It holds for the
    whole process.

    Returns:
        Whether it took effect; other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
