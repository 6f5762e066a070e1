"""What the curves of a logger are drawn over."""

from typing import Literal

Axis = Literal["step", "tokens", "flops", "seconds"]
"""One of the four that every record carries."""
