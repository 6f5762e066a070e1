"""The machine: picks device and precision; peak FLOP/s, memory, deterministic algorithms, the allocator."""

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
    """The value of ``precision=auto`` on a device: "bf16" if it has bf16 matrix hardware, else "fp32".

    The hardware decides and not a timing, so that it is the same in every run. CPUs need AMX or AVX512_BF16;
    without them bf16 products are slower than fp32 ones (benchmarks/attention_kernels.py --isa AVX512_CORE).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu":
        isa = torch.cpu.get_capabilities()
        return "bf16" if isa.get("amx_bf16") or isa.get("avx512_bf16") else "fp32"
    return "fp32"


def pick_precision(precision: str, device: torch.device) -> str:
    """Resolve the setting ``fp32``, ``bf16``, ``fp16`` or ``auto`` on a device."""
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


def shared_casts(device: torch.device) -> AbstractContextManager[object]:
    """The context of the micro-batches of one step: autocast rounds each weight once for all of them.

    Autocast forgets the rounded weights when its outermost context ends. This one surrounds those of the forward passes
    and is itself disabled, so that backward passes compute as without it. It must end before the weights change.
    """
    return torch.autocast(device.type, enabled=False)


_CAPABILITIES: dict[int, tuple[int, int]] = {}


def gpu_capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA GPU, e.g. (9, 0) for an H100.

    Once known it is read from a dictionary, which torch.compile can do within a graph; it cannot ask the driver there.
    """
    index = device.index or 0
    if index not in _CAPABILITIES:
        _CAPABILITIES[index] = torch.cuda.get_device_capability(index)
    return _CAPABILITIES[index]


# Dense peaks of products in bf16 with fp32 sums, in FLOP/s: the tables of NVIDIA's data sheets (the rows "Tensor Core"
# without sparsity, half of the figures that are marked with it), and for GeForce and workstation cards of the
# architecture white papers. The first name that is part of what the driver calls the card counts.
GPU_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 4080": 97e12,
    "RTX 3090": 71e12,
}

PRODUCTS = (256, 512, 1024)
"""Sizes of the square matrices whose products are timed on a CPU."""
PEAK_SECONDS = 0.3
"""Seconds after which the timing stops."""


def pick_device(name: str, *, key: str = "trainer.device") -> torch.device:
    """Resolve a device setting, and limit torch's threads to the usable CPUs.

    Args:
        name: ``cuda``, ``mps``, ``cpu``, or ``auto`` for the first of these that exists.
        key: the setting, for messages.

    Raises:
        UserError: this machine has no such device.
    """
    # torch starts a thread per CPU of its affinity mask and ignores a container's CPU quota; the extra threads only
    # compete with each other.
    if "OMP_NUM_THREADS" not in os.environ and (cpus := usable_cpus()) < torch.get_num_threads():
        torch.set_num_threads(cpus)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in available.items() if is_available))
    if not available[name]:
        kinds = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise UserError("no such device here", key=key, value=name, hint=f"this machine has {kinds}")
    return torch.device(name)


def device_memory(device: torch.device) -> int | None:
    """Total bytes of memory that this process may use on a device; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory() if device.type == "cpu" else None


def describe_device(device: torch.device) -> str:
    """The name of a device, with the number of threads for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return device.type


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s for the model FLOPs utilization (MFU); None if unknown.

    On a GPU it is the data sheet's figure, except for fp32, where products may or may not use TF32. On a CPU it is
    the best rate of timed matrix products. Their size grows until ``PEAK_SECONDS`` have passed: without fp16 hardware
    the largest product would take seconds.
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
    return peak or None  # a broken clock measures nothing


def peak_memory(device: torch.device) -> int:
    """Peak bytes in use so far: allocated on a GPU, resident in the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


@contextmanager
def deterministic(wanted: str | bool, device: torch.device) -> Iterator[None]:
    """Use torch's deterministic algorithms inside the block.

    By default torch then fills even uninitialized memory, as a debugging aid. That is switched off: it costs time and
    changes no bit, as a test shows.

    Args:
        wanted: true, false, or auto, which means true on a CPU.
    """
    enabled = device.type == "cpu" if wanted == "auto" else bool(wanted)
    if not enabled:
        yield
        return
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    debugging: Any = torch.utils.deterministic  # mypy does not know the attribute
    before = torch.get_deterministic_debug_mode(), debugging.fill_uninitialized_memory
    # torch.use_deterministic_algorithms would load the compiler, which takes a second, to set its flag as well. A run
    # that compiles sets it itself.
    torch.set_deterministic_debug_mode("error")
    debugging.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        debugging.fill_uninitialized_memory = before[1]


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later allocations, for the whole process.

    By default every large tensor is mapped anew, and the kernel zeroes its pages as they are first touched. On a CPU
    that can take longer than the arithmetic (benchmarks/train_speed.py).

    Returns:
        Whether it took effect; False with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
