"""The C++ kernels for decoding and training, where they can be had."""

import torch

from tinyllm.data.prepare import cache_root
from tinyllm.nn.decode_kernels import DecodeKernels, decode_kernels
from tinyllm.nn.kernel_build import KernelsUnavailable
from tinyllm.nn.train_kernels import TrainKernels, train_kernels
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


def train_kernels_for(device: torch.device, precision: str) -> TrainKernels | None:
    """The kernels for training on a CPU in bf16; without them torch's operations do the same, slower."""
    if device.type != "cpu" or precision != "bf16":
        return None
    try:
        return train_kernels(cache_root() / "train_kernels")
    except KernelsUnavailable as reason:
        print_note(f"training runs on torch's operations, which are slower: {reason}")
        return None
