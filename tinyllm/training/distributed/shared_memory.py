"""Sums over the ranks of one machine through shared memory.

On CPUs, gloo's all-reduce sends every gradient through a socket, which costs each rank's only core several copies of it
in the kernel. Here each rank writes its own into memory that all of them map, and reads the others'.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MAX_RANKS = 4
"""Every rank reads the tensors of all others; with more ranks, a ring that passes on partial sums moves less."""


class SharedSum:
    """Sums fp32 tensors over the ranks of one machine, in the order of the ranks, so that all get the same bits.

    All ranks must call it with tensors of the same size, in the same order.

    Args:
        gather_objects: all-gather of a small object, by rank.
    """

    def __init__(self, *, rank: int, gather_objects: Callable[[Any], list[Any]]) -> None:
        self._rank, self._gather_objects = rank, gather_objects
        self._slots: list[Tensor] = []
        self._turn = 0

    @classmethod
    def where_possible(
        cls, device: torch.device, *, rank: int, world_size: int, gather_objects: Callable[[Any], list[Any]]
    ) -> "SharedSum | None":
        """The sum for these ranks; None if one of them cannot map the memory of the others."""
        on_one_machine = os.environ.get("LOCAL_WORLD_SIZE", "") == str(world_size)
        if device.type != "cpu" or not 1 < world_size <= MAX_RANKS or not on_one_machine:
            return None
        shared = cls(rank=rank, gather_objects=gather_objects)
        return shared if hasattr(os, "memfd_create") and shared._map(1) else None

    def __call__(self, tensor: Tensor) -> None:
        """Replace the tensor with the sum over the ranks."""
        if tensor.numel() > self._slots[0].shape[1] and not self._map(tensor.numel()):
            raise RuntimeError("a rank cannot map the shared memory of another, which worked before")
        # Two slots in turn: whoever has passed the barrier of the other slot has finished reading this one.
        self._turn = 1 - self._turn
        slots = [slot[self._turn, : tensor.numel()] for slot in self._slots]
        slots[self._rank].copy_(tensor)
        dist.barrier()
        torch.add(slots[0], slots[1], out=tensor)
        for slot in slots[2:]:
            tensor.add_(slot)

    def _map(self, numel: int) -> bool:
        """Give every rank two slots of ``numel`` values; returns whether all ranks could map all of them."""
        # An anonymous file: it cannot outlive the processes, and the size of /dev/shm does not limit it.
        size = 2 * 4 * numel
        own = os.memfd_create(f"tinyllm-sum-{self._rank}")
        try:
            os.ftruncate(own, size)
            files = self._gather_objects(f"/proc/{os.getpid()}/fd/{own}")
            try:
                slots = [_mapped(file, size).view(2, numel) for file in files]
            except OSError:
                slots = []
            all_mapped = all(self._gather_objects(bool(slots)))  # also keeps the file open until everyone has mapped it
        finally:
            os.close(own)
        self._slots = slots if all_mapped else []
        return all_mapped


def _mapped(file: str, size: int) -> Tensor:
    descriptor = os.open(file, os.O_RDWR)
    try:
        return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.float32)
    finally:
        os.close(descriptor)
