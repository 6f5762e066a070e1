"""How a model hands its shape to parts whose constructors it does not know."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any


def make(factory: Callable[..., Any], **offered: Any) -> Any:
    """``factory`` called with those of the ``offered`` arguments that its signature names and that are not
    bound yet.

    So a part states what it needs by naming it in its constructor (multi-head attention does not name
    ``n_kv_heads``, grouped-query attention does), and one with needs of its own changes nothing in the model.
    A bound argument always wins: it is what the configuration says.
    """
    bound, inner = set[str](), factory
    while isinstance(inner, partial):
        bound |= set(inner.keywords)
        inner = inner.func
    wanted = names_of(factory) - bound
    return factory(**{name: value for name, value in offered.items() if name in wanted})


def names_of(factory: Callable[..., Any]) -> set[str]:
    """The arguments that the signature of ``factory`` names, bound ones too."""
    while isinstance(factory, partial):
        factory = factory.func
    return set(inspect.signature(factory).parameters)
