"""The arguments a class or function accepts; a constructor's ``**kwargs`` stands for the parameters of its base."""

import inspect
import typing
from collections.abc import Callable
from functools import partial
from typing import Any


def make(factory: Callable[..., Any], **offered: Any) -> Any:
    """Call ``factory`` with the offered arguments that its signature names and that are not bound yet.

    A part thus asks for what it needs by naming it in its constructor (grouped-query attention names ``n_kv_heads``,
    multi-head attention does not), and a new part changes nothing in the model. A bound argument wins: it is what the
    configuration says.
    """
    bound, inner = set[str](), factory
    while isinstance(inner, partial):
        bound |= set(inner.keywords)
        inner = inner.func
    wanted = names_of(inner) - bound
    return factory(**{name: value for name, value in offered.items() if name in wanted})


def names_of(factory: Callable[..., Any]) -> set[str]:
    """The arguments that the signature of ``factory`` names, including those a ``partial`` has bound."""
    while isinstance(factory, partial):
        factory = factory.func
    return set(parameters_of(factory) or inspect.signature(factory).parameters)


def parameters_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """The named parameters of a class or function; None if it accepts any."""
    base = None
    if inspect.isclass(target):
        owner = _constructor_class(target)
        if owner.__module__.startswith("torch.nn."):  # its **kwargs are for subclasses to refuse
            return {}
        base = _base_of(owner)
    parameters = inspect.signature(target).parameters
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if len(named) == len(parameters) or not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return named
    inherited = None if base is None else parameters_of(base)
    return None if inherited is None else inherited | named


def annotations_of(target: Any) -> dict[str, Any]:
    """The resolved annotations of the parameters of a class or function."""
    inherited: dict[str, Any] = {}
    function = target
    if inspect.isclass(target):
        owner = _constructor_class(target)
        base, function = _base_of(owner), owner.__init__
        if base is not None and inspect.getfullargspec(function).varkw:
            inherited = annotations_of(base)
    try:
        return inherited | typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _constructor_class(target: type) -> Any:
    """The class that defines the constructor of ``target``."""
    return next(base for base in target.__mro__ if "__init__" in vars(base))


def _base_of(owner: type) -> Any:
    """The class whose constructor is called by the constructor of ``owner``; None if it takes anything or nothing."""
    base = _constructor_class(owner.__mro__[1]) if owner is not object else object
    return None if base is object or base.__module__.startswith("torch.") else base
