"""Independent random streams derived from the run's seed by hashing, so that no generator state has to be saved."""

import hashlib
import random
from typing import Any

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


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch for the host and a device, which dropout draws from.

    ``torch.manual_seed`` does so for every kind of device. For each kind that is not in use it keeps a stack trace,
    which takes half a millisecond, in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        kind: Any = torch.get_device_module(device)
        getattr(kind, "manual_seed_all", kind.manual_seed)(seed)
