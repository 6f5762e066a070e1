"""A row of docs/reliability.md."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault that the tests inject."""

    number: str
    fault: str
    outcome: str
    message: str = ""
    """The message, with … for the variable parts; "": no message is expected."""
    tests: tuple[str, ...]
    """Test functions as ``<file below tests/>::<function>``."""
