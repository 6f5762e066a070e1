"""The machine: device, precision, peak arithmetic rate, memory, determinism and the allocator."""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from tinyllm.errors import UserError
from tinyllm.utils.memory import machine_memory
from tinyllm.utils.platforms import peak_resident_bytes, usable_cpus


def auto_precision(device: torch.device | str) -> str:
    """What ``precision=auto`` is on a device: "bf16" where it multiplies bf16 matrices in hardware, else "fp32".

    A fixed table, never a timing, so two runs agree. On a CPU the hardware is AMX or AVX512_BF16; without either,
    bf16 products are slower than fp32 ones (benchmarks/attention_kernels.py --isa AVX512_CORE).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu":
        isa = torch.cpu.get_capabilities()
        return "bf16" if isa.get("amx_bf16") or isa.get("avx512_bf16") else "fp32"
    return "fp32"


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision of a setting ``fp32``, ``bf16``, ``fp16`` or ``auto`` on a device."""
    return auto_precision(device) if precision == "auto" else precision


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products at ``fp32``, ``bf16`` or ``fp16``; weights stay in fp32."""
    return AUTOCAST.get(precision, torch.float32)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass at ``fp32``, ``bf16`` or ``fp16``."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


# Dense bf16 peaks in TFLOP/s, from the makers' data sheets (without sparsity).
GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

PRODUCTS = (256, 512, 1024)
"""Rows and columns of the products that are timed on a CPU."""
PEAK_SECONDS = 0.3
"""After so long no other product is begun."""


def pick_device(name: str, *, key: str = "trainer.device") -> torch.device:
    """The device that the setting ``key`` asks for. From then on torch has no more threads than CPUs it may use.

    Raises:
        UserError: it is not on this machine.
    """
    # torch counts the CPUs of its affinity, not a container's share of them, of which more threads make nothing faster
    if "OMP_NUM_THREADS" not in os.environ and (cpus := usable_cpus()) < torch.get_num_threads():
        torch.set_num_threads(cpus)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError("no such device here", key=key, value=name, hint=f"this machine has {there}")
    return torch.device(name)


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that there are for this process on a device, used or not; None: not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory() if device.type == "cpu" else None


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return device.type


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s for the utilisation (MFU): on a GPU the data sheet's, on a CPU the most that a product reaches now.

    None where neither is known. The products grow while they are quick, so that this takes a fraction of a second where
    a format has no hardware: in fp16 the largest takes seconds. fp32 on a GPU has no figure here: matrix products there
    may or may not use TF32.
    """
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in GPU_PEAKS.items() if key in name), None)
    if device.type != "cpu":
        return None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    peak, begin = 0.0, time.perf_counter()
    for size in PRODUCTS:
        matrix = torch.ones(size, size, dtype=dtype)
        for _ in range(8):
            start = time.perf_counter()
            matrix @ matrix
            end = time.perf_counter()
            peak = max(peak, 2 * size**3 / (end - start)) if end > start else peak
            if end - begin > PEAK_SECONDS:
                return peak or None
    return peak or None  # None: the clock stands still


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a GPU, resident for the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


@contextmanager
def deterministic(wanted: str | bool, device: torch.device) -> Iterator[None]:
    """Use torch's deterministic algorithms inside the block.

    Filling uninitialised memory, which torch adds for debugging, is left off: it costs time and, as a test shows,
    changes no bit.

    Args:
        wanted: true, false, or auto: on a CPU.
    """
    on = device.type == "cpu" if wanted == "auto" else bool(wanted)
    if not on:
        yield
        return
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    debugging: Any = torch.utils.deterministic  # its attribute is made at run time
    before = torch.are_deterministic_algorithms_enabled(), debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        debugging.fill_uninitialized_memory = before[1]


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
