"""What docs/reliability.md says of one fault."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault."""

    number: str
    fault: str
    outcome: str
    message: str = ""
    """What is said, with … for what varies; "": nothing is to be said."""
    tests: tuple[str, ...]
    """Files with the names of functions, below ``tests/``."""
