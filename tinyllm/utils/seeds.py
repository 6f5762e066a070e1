"""Independent random streams derived from the run's seed by hashing, so that no generator state has to be saved."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, use: str, *position: int) -> int:
    """The 63-bit seed of a random stream.

    Args:
        seed: the run's ``seed``.
        use: purpose of the stream, e.g. ``"weights"`` or ``"dropout"``.
        position: position in the run, e.g. step and rank.
    """
    text = ",".join([str(seed), use, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_globals(seed: int, rank: int = 0) -> None:
    """Seed the global generators of torch, NumPy and Python.

    tinyllm never uses them without seeding them first, but a user's own class may. Checkpoints hold their states.
    """
    torch.default_generator.manual_seed(derive_seed(seed, "torch", rank))  # torch.manual_seed imports the compiler
    np.random.seed(derive_seed(seed, "numpy", rank) % 2**32)
    random.seed(derive_seed(seed, "python", rank))
