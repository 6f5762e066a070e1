"""How much memory an optimizer keeps, without making it: that would import torch's compiler."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Groups = Sequence[dict[str, Any]]
"""Parameter groups as an optimizer gets them."""
F = TypeVar("F", bound=Callable[..., Any])
NAME = "state_bytes"


def keeps(count: Callable[..., int]) -> Callable[[F], F]:
    """Say of an optimizer how many bytes of state it keeps once it has taken a step.

    Args:
        count: gets the groups and the settings that the optimizer is made with.
    """

    def said(optimizer: F) -> F:
        setattr(optimizer, NAME, staticmethod(count) if isinstance(optimizer, type) else count)
        return optimizer

    return said


def weights(groups: Groups) -> int:
    """How many there are."""
    return sum(p.numel() for group in groups for p in group["params"])


def one_moment(groups: Groups, **settings: Any) -> int:
    """A momentum in fp32."""
    return 4 * weights(groups)


def two_moments(groups: Groups, **settings: Any) -> int:
    """A first and a second moment in fp32."""
    return 8 * weights(groups)


def state_bytes(optimizer: Any, groups: Groups, **settings: Any) -> int:
    """Bytes that an optimizer keeps; one that does not say it is taken to keep two moments in fp32, as most do.

    Args:
        optimizer: the class or function that makes it.
        settings: what it is made with besides the groups.
    """
    count: Callable[..., int] = getattr(optimizer, NAME, two_moments)
    return count(groups, **settings)
