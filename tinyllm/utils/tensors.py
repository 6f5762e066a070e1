"""Helpers for plain and sharded (DTensor) tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (torch's DTensor)."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor; a collective if it is sharded, so every rank must call it."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return full


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    sharded: Any = tensor
    local: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return local


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``full`` when sharded as ``like`` is, without communication."""
    if not is_sharded(like):
        return full
    sharded: Any = like
    # Every rank has the full tensor: a replicated DTensor, of which each rank keeps its own part. The class is taken
    # from the tensor because importing torch.distributed.tensor takes seconds.
    replicated = type(sharded).from_local(full.to(sharded.device), sharded.device_mesh, run_check=False)
    return local_tensor(replicated.redistribute(placements=sharded.placements))


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first floating-point tensor with a NaN or infinity in this process's part; None: all are finite.

    The device is synchronized once, whatever the number of tensors.
    """
    floating = [(name, local_tensor(tensor.detach())) for name, tensor in named if tensor.is_floating_point()]
    if not floating:
        return None
    flags = torch.stack([torch.isfinite(tensor).all() for _, tensor in floating]).tolist()
    return next((name for (name, _), finite in zip(floating, flags, strict=True) if not finite), None)


def autocast_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which linear layers compute on a device: autocast's where it is on, else ``dtype``."""
    has_autocast = device.type != "meta"
    if has_autocast and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def to_floats(scalars: list[Tensor]) -> list[float]:
    """The values of scalars on a device, in a single transfer."""
    values: list[float] = torch.stack([scalar.float() for scalar in scalars]).tolist()
    return values
