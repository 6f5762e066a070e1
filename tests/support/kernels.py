"""The decoding kernels, where they can be built."""

import os
from pathlib import Path

from tinyllm.nn.decode_kernels import DecodeKernels, KernelsUnavailable, decode_kernels


def decode_kernels_here() -> DecodeKernels | None:
    """The kernels, in the token cache of the test session; None: there is no compiler."""
    try:
        return decode_kernels(Path(os.environ["TINYLLM_CACHE"]) / "kernels")
    except KernelsUnavailable:
        return None
