"""Independent random streams, each a pure function of the run's seed, so that no state needs to be carried along."""

import hashlib


def stream(seed: int, use: str, *position: int) -> int:
    """A 63-bit seed for one use of randomness at one position.

    Args:
        seed: the run's ``seed``.
        use: what the numbers are for, e.g. ``"weights"`` or ``"dropout"``.
        position: where in the run, e.g. step and rank.
    """
    text = ",".join([str(seed), use, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
