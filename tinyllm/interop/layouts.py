"""How transformers stores a tinyllm tensor: ``split`` for export and ``join``, its exact inverse, for import.

Values are only rearranged, never changed, so a round trip is bit-exact in any dtype.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Layout(ABC):
    """One way a tensor is stored by transformers."""

    @property
    def parts(self) -> int:
        """Number of tensors in transformers that make up one tinyllm tensor."""
        return 1

    @abstractmethod
    def split(self, tensor: Tensor) -> list[Tensor]:
        """transformers' tensors of a tinyllm tensor. Works on meta tensors too, for the shapes."""

    @abstractmethod
    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tinyllm tensor of transformers' tensors."""


class SameLayout(Layout):
    """One tensor, unchanged."""

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor


class TransposedLayout(Layout):
    """One matrix stored as (in, out), like GPT-2's Conv1D."""

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.t()]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor.t()


@dataclass(frozen=True)
class RowsLayout(Layout):
    """Fused layers: the rows of several tensors, concatenated."""

    sizes: tuple[int, ...]

    @property
    def parts(self) -> int:
        return len(self.sizes)

    def split(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.split(self.sizes))

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))


@dataclass(frozen=True)
class ExpertsLayout(Layout):
    """Experts stacked along the first dimension; ``each`` is the layout of one expert."""

    n_experts: int
    each: Layout

    @property
    def parts(self) -> int:
        return self.n_experts * self.each.parts

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [part for expert in tensor.unbind() for part in self.each.split(expert)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        size = self.each.parts
        return torch.stack([self.each.join(tensors[i : i + size]) for i in range(0, len(tensors), size)])


@dataclass(frozen=True)
class InterleavedLayout(Layout):
    """Rotary rows stored as adjacent pairs (x0 y0 x1 y1 …), which tinyllm stores in halves (x0 x1 … y0 y1 …).

    Rows come in groups, one per head: first ``plain`` rows, which stay in place, then ``rotary`` rows.
    """

    plain: int
    rotary: int

    def split(self, tensor: Tensor) -> list[Tensor]:
        plain, rotary = self._apart(tensor)
        pairs = rotary.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return [torch.cat((plain, pairs), dim=1).flatten(0, 1)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        plain, rotary = self._apart(tensor)
        halves = rotary.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat((plain, halves), dim=1).flatten(0, 1)

    def _apart(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        plain, rotary = tensor.unflatten(0, (-1, self.plain + self.rotary)).split((self.plain, self.rotary), dim=1)
        return plain, rotary


@dataclass(frozen=True)
class Weight:
    """A tensor of the model, and its names and layout in transformers."""

    name: str
    hf_names: tuple[str, ...]
    layout: Layout = field(default_factory=SameLayout)
