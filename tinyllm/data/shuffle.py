"""A stateless shuffle: element i of permutation k of 0 … n−1, computed without storing the permutation.

A Feistel network permutes 0 … 4^h−1 for any round function (Luby and Rackoff 1988). Values that are not below n go
through it again until they are ("cycle walking", Black and Rogaway 2002), which keeps it a permutation.
"""

import numpy as np

ROUNDS = 6
MASK_64 = 2**64 - 1


def mix(value: int) -> int:
    """Mix the bits of a 64-bit number (the finalizer of splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def draw(*parts: int) -> int:
    """A 64-bit random number that is a pure function of its arguments: a seed and the purpose of the number."""
    value = 0
    for part in parts:
        value = mix(value ^ (part & MASK_64))
    return value


def permuted(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """The images of ``index`` (int64, 0 … n−1) under permutation ``key`` of 0 … n−1."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    keys = [np.uint64(draw(key, i)) for i in range(ROUNDS)]
    values = index.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], np.uint64(half), mask, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def in_epochs(samples: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Which of n items each sample is, int64: each item once per epoch, each epoch in a new order.

    Args:
        samples: numbers ≥ 0, unbounded.
    """
    samples = np.asarray(samples, dtype=np.int64)
    epochs, items = samples // n, np.empty_like(samples)
    for epoch in sorted(set(epochs.tolist())):  # np.unique would load numpy.ma, 0.1 s before the first step
        chosen = epochs == epoch
        items[chosen] = permuted(samples[chosen] - epoch * n, n, draw(seed, epoch))
    return items


def _feistel(values: np.ndarray, half: np.uint64, mask: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << half) | right


def mixed(values: np.ndarray) -> np.ndarray:
    """Elementwise :func:`mix`."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
