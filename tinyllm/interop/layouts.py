"""How one of our tensors lies in the tensors of another program: ``split`` gives those, ``join`` is its exact inverse.

Values are moved and never computed with, so a way there and back gives the same bits in any dtype.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Layout(ABC):
    """The interface."""

    @property
    def parts(self) -> int:
        """How many of their tensors make one of ours."""
        return 1

    @abstractmethod
    def split(self, ours: Tensor) -> list[Tensor]:
        """Their tensors of ours. Works on meta tensors, which gives the shapes."""

    @abstractmethod
    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        """Our tensor of theirs."""


class Same(Layout):
    """One tensor, as it is."""

    def split(self, ours: Tensor) -> list[Tensor]:
        return [ours]

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor


class Transposed(Layout):
    """One matrix stored as (in, out), as GPT-2's Conv1D is."""

    def split(self, ours: Tensor) -> list[Tensor]:
        return [ours.t()]

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        return tensor.t()


@dataclass(frozen=True)
class Rows(Layout):
    """Fused layers: our rows are those of several tensors, one after the other."""

    sizes: tuple[int, ...]

    @property
    def parts(self) -> int:
        return len(self.sizes)

    def split(self, ours: Tensor) -> list[Tensor]:
        return list(ours.split(self.sizes))

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(theirs))


@dataclass(frozen=True)
class Experts(Layout):
    """Stacked experts: our first dimension counts them; each lies as ``each`` says."""

    n_experts: int
    each: Layout

    @property
    def parts(self) -> int:
        return self.n_experts * self.each.parts

    def split(self, ours: Tensor) -> list[Tensor]:
        return [part for expert in ours.unbind() for part in self.each.split(expert)]

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        size = self.each.parts
        return torch.stack([self.each.join(theirs[i : i + size]) for i in range(0, len(theirs), size)])


@dataclass(frozen=True)
class Interleaved(Layout):
    """Rotary rows stored as neighbouring pairs (x0 y0 x1 y1 …) where ours are in halves (x0 x1 … y0 y1 …).

    The rows come in groups, one per head: ``plain`` rows that stay, then ``rotary`` ones.
    """

    plain: int
    rotary: int

    def split(self, ours: Tensor) -> list[Tensor]:
        plain, rotary = self._apart(ours)
        pairs = rotary.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return [torch.cat((plain, pairs), dim=1).flatten(0, 1)]

    def join(self, theirs: Sequence[Tensor]) -> Tensor:
        (tensor,) = theirs
        plain, rotary = self._apart(tensor)
        halves = rotary.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat((plain, halves), dim=1).flatten(0, 1)

    def _apart(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        plain, rotary = tensor.unflatten(0, (-1, self.plain + self.rotary)).split((self.plain, self.rotary), dim=1)
        return plain, rotary


@dataclass(frozen=True)
class Weight:
    """One of our tensors and where it is in theirs."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = field(default_factory=Same)
