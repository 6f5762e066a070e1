"""Tensors of which a process may have a part only (torch's DTensor), for arithmetic that needs to know."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has a part of it only."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank has to call it."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return full


def local_tensor(tensor: Tensor) -> Tensor:
    """The part that is here; writing into it changes the tensor."""
    sharded: Any = tensor
    here: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return here


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that is here of ``like``; nothing is sent."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return local_tensor(
        distribute_tensor(full.to(placed.device), placed.device_mesh, placed.placements, src_data_rank=None)
    )
