"""Breaking off an evaluation or a sample when the run is told to stop."""

from collections.abc import Callable

Stopping = Callable[[], bool]
"""Asked between batches or tokens: whether to break off. It asks all ranks, so each has to call it."""


class Interrupted(Exception):
    """An evaluation or a sample was broken off; nothing of it is of use."""
