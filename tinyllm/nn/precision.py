"""Which number format pays on which machine."""

import torch


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


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What linear layers compute in on a device: autocast's dtype where it is on, else ``dtype``."""
    has_autocast = device.type != "meta"
    if has_autocast and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype
