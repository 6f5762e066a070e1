"""A copy of a state in memory that stays as it is while training goes on."""

from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Copies nested containers and their tensors; memory for tensors on the CPU is kept from one copy to the next.

    What was taken before is overwritten by the next :meth:`take`.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, value: Any) -> Any:
        """The same containers with the values of now; tensors on the CPU, each with a storage of its own."""
        used: dict[tuple[Any, ...], Tensor] = {}
        devices: set[torch.device] = set()
        copy = self._copy(value, (), used, devices)
        self._kept = used
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copy

    def _copy(
        self, value: Any, place: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor], devices: set[torch.device]
    ) -> Any:
        if isinstance(value, Tensor):
            kept = self._kept.get(place)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            used[place] = kept
            if value.is_cuda:
                devices.add(value.device)
            return kept.copy_(value, non_blocking=value.is_cuda)
        if isinstance(value, dict):
            return {key: self._copy(one, (*place, key), used, devices) for key, one in value.items()}
        if isinstance(value, list | tuple):
            copies = [self._copy(one, (*place, index), used, devices) for index, one in enumerate(value)]
            return copies if isinstance(value, list) else tuple(copies)
        return value
