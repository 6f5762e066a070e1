"""The C++ kernels for decoding, where they can be had."""

import torch

from tinyllm.data.prepare import cache_root
from tinyllm.nn.decode_kernels import DecodeKernels, KernelsUnavailable, decode_kernels
from tinyllm.utils.text import print_note


def kernels_for(device: torch.device) -> DecodeKernels | None:
    """The kernels for decoding on a CPU; without them torch's operations do the same, slower."""
    if device.type != "cpu":
        return None
    try:
        return decode_kernels(cache_root() / "kernels")
    except KernelsUnavailable as reason:
        print_note(f"decoding runs on torch's operations, which are slower: {reason}")
        return None
