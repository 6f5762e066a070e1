"""Independent random streams, each a pure function of the run's seed, so that no state needs to be carried along."""

import hashlib
import random

import numpy as np
import torch


def stream(seed: int, use: str, *position: int) -> int:
    """A 63-bit seed for one use of randomness at one position.

    Args:
        seed: the run's ``seed``.
        use: what the numbers are for, e.g. ``"weights"`` or ``"dropout"``.
        position: where in the run, e.g. step and rank.
    """
    text = ",".join([str(seed), use, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_globals(seed: int, rank: int = 0) -> None:
    """Put the global generators of torch, numpy and Python where the seed says.

    Nothing of ours reads them unseeded, but a class of somebody's own may, and their states are part of a checkpoint.
    """
    torch.default_generator.manual_seed(stream(seed, "torch", rank))  # torch.manual_seed would import the compiler
    np.random.seed(stream(seed, "numpy", rank) % 2**32)
    random.seed(stream(seed, "python", rank))
