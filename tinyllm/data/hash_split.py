"""A split that each item decides by itself: by a hash of what must not be on both sides."""

import hashlib


def share_of(key: str) -> float:
    """A number in [0, 1) that is a hash of ``key``; below ``val_fraction``, the item belongs to validation."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
