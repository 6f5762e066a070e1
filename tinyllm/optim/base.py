"""Shared by all optimizers: checks of hyper-parameters, and the size and shapes of the state."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

Groups = Sequence[dict[str, Any]]
"""Parameter groups as an optimizer receives them."""
Shapes = dict[str, tuple[int, ...]]
"""Shape of each entry of a parameter's state; () for a number."""
F = TypeVar("F", bound=Callable[..., Any])
STATE_BYTES = "state_bytes"
QUANTIZED_BLOCK = 256
"""Weights that share a scale in bitsandbytes' 8-bit moments, and the number of codes an 8-bit value has."""


def check_not_negative(**values: float) -> None:
    """Refuse negative hyper-parameters.

    Raises:
        ValueError: one is negative; the message names it.
    """
    for name, value in values.items():
        if not value >= 0:  # also refuses NaN
            raise ValueError(f"{name}={value} is negative: {name} must be at least 0")


def check_betas(betas: Sequence[float]) -> None:
    """Refuse decay rates outside [0, 1).

    Raises:
        ValueError: one is out of range.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={list(betas)} are out of range: each must be at least 0 and below 1")


def declares_state_bytes(count: Callable[..., int]) -> Callable[[F], F]:
    """Decorator: declare how many bytes of state an optimizer keeps, for the memory estimate before a run starts.

    Declared rather than measured, because creating an optimizer imports torch's compiler.

    Args:
        count: called with the parameter groups and the optimizer's settings.
    """

    def declare(optimizer: F) -> F:
        setattr(optimizer, STATE_BYTES, staticmethod(count) if isinstance(optimizer, type) else count)
        return optimizer

    return declare


def one_moment_bytes(groups: Groups, **settings: Any) -> int:
    """Bytes of one fp32 moment per weight."""
    return 4 * sum(p.numel() for group in groups for p in group["params"])


def two_moments_bytes(groups: Groups, **settings: Any) -> int:
    """Bytes of two fp32 moments per weight."""
    return 2 * one_moment_bytes(groups)


def state_bytes(optimizer: Any, groups: Groups, **settings: Any) -> int:
    """Bytes of state that an optimizer keeps; two fp32 moments per weight where it declares nothing.

    Args:
        optimizer: its class, or the function that creates it.
        settings: its arguments other than the groups.
    """
    count: Callable[..., int] = getattr(optimizer, STATE_BYTES, two_moments_bytes)
    return count(groups, **settings)


def state_shapes(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, saved: dict[str, Any]
) -> Shapes | None:
    """The state that ``optimizer`` keeps for a parameter, so that a saved state with different shapes is refused.

    Args:
        group: the parameter's group.
        saved: the parameter's saved state; bitsandbytes decides by size and version which moments have 8 bits.

    Returns:
        None where the optimizer does not say.
    """
    shape = tuple(parameter.shape)
    if hasattr(optimizer, "state_shapes"):
        shapes: Shapes = optimizer.state_shapes(group, shape)
        return shapes
    if isinstance(optimizer, torch.optim.AdamW):
        return adamw_shapes(shape)
    if any(base.__module__.startswith("bitsandbytes") for base in type(optimizer).__mro__):
        shapes = {"step": (), "state1": shape, "state2": shape}
        for number in "12":
            moment = saved.get(f"state{number}")
            if isinstance(moment, Tensor) and moment.dtype == torch.uint8:
                blocks = -(-parameter.numel() // QUANTIZED_BLOCK)
                shapes |= {f"qmap{number}": (QUANTIZED_BLOCK,), f"absmax{number}": (blocks,)}
        return shapes
    return None


def adamw_shapes(shape: tuple[int, ...]) -> Shapes:
    """The state that torch's AdamW keeps for a parameter."""
    return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}


_UNCOMPILED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def leave_compiler_unloaded() -> None:
    """Let optimizers be built and used without loading torch's compiler, which takes a second of every start.

    ``torch._disable_dynamo`` imports ``torch._dynamo`` at the first call of a method, only to learn how to exclude the
    method from graphs. It caches the answer on the method; the answer stored here is the method itself, which is right
    because tinyllm compiles the blocks of a model and never an optimizer.
    """
    for name in _UNCOMPILED:
        method = getattr(Optimizer, name)
        plain = inspect.unwrap(method)
        if plain is not method:
            vars(plain).setdefault("__dynamo_disable", plain)
