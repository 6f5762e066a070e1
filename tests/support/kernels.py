"""The kernels for decoding and training, where they can be built."""

import os
from pathlib import Path

from tinyllm.nn.decode_kernels import DecodeKernels, decode_kernels
from tinyllm.nn.kernel_build import KernelsUnavailable
from tinyllm.nn.train_kernels import TrainKernels, train_kernels


def decode_kernels_here() -> DecodeKernels | None:
    """The kernels, in the token cache of the test session; None: there is no compiler."""
    try:
        return decode_kernels(Path(os.environ["TINYLLM_CACHE"]) / "kernels")
    except KernelsUnavailable:
        return None


def train_kernels_here() -> TrainKernels | None:
    """The kernels for training, in the token cache of the test session; None: there is no compiler."""
    try:
        return train_kernels(Path(os.environ["TINYLLM_CACHE"]) / "train_kernels")
    except KernelsUnavailable:
        return None
