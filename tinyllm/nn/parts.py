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
    target, bound = factory, set[str]()
    while isinstance(target, partial):
        bound |= set(target.keywords)
        target = target.func
    named = inspect.signature(target).parameters
    return factory(**{name: value for name, value in offered.items() if name in named and name not in bound})
