"""Positions: how a model knows the order of its tokens.

A position object acts in two places: ``embed`` adds to the token embeddings, and ``rotary`` gives each attention layer
the module that rotates its queries and keys, if any.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyllm.nn.step_recorder import StepRecorder

MAX_FREQUENCY = 1e30
"""Largest frequency, in radians per position: angles are position · frequency and must fit in fp32."""


class Position(nn.Module, ABC):
    """The interface; its defaults add no position information.

    Attributes:
        rotates: whether queries and keys are rotated.
        score_factor: factor on the attention scores of MLA, which YaRN increases with the context.
    """

    rotates = False
    score_factor = 1.0

    def embed(self, x_BTC: Tensor, start: int | Tensor) -> Tensor:
        """Add position information to the embeddings of tokens at positions start … start+T−1.

        Args:
            start: position of the first token; (B,) where the rows differ; (B, T) to give the position of every token.
        """
        return x_BTC

    def record(self, step: StepRecorder) -> Tensor | None:
        """For decoding in C++: (positions, C), what ``embed`` adds at each position; None: nothing."""
        return None

    def rotary(self, dim: int) -> "Rotary | None":
        """The rotation for heads of this size, shared by all layers; None: no rotation."""
        return None

    @abstractmethod
    def init_weights(self, std: float) -> None:
        """Initialize the weights and fill the tables."""


class NoPosition(Position):
    """No positions but the causal mask (NoPE, Haviv et al. 2022)."""

    def init_weights(self, std: float) -> None:
        pass


class Learned(Position):
    """A learned vector per position (Radford et al. 2019)."""

    def __init__(self, *, d_model: int, max_seq_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_seq_len, d_model, _weight=torch.empty(max_seq_len, d_model))

    def embed(self, x_BTC: Tensor, start: int | Tensor) -> Tensor:
        return x_BTC + _rows_at(self.table.weight, start, x_BTC.shape[1])

    def record(self, step: StepRecorder) -> Tensor | None:
        return self.table.weight

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.table.weight, std=std)


class _Table(nn.Module):
    """Constant buffers outside the state dict, which stay fp32 when the model is cast to a different dtype.

    Outside the state dict, because the configuration determines them: a checkpoint loads into a longer context.
    """

    def __init__(self, build: Callable[[torch.device], dict[str, Tensor]], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self._build = build
        device = torch.empty(0).device
        # On meta, cos() would import torch's compiler, and the angles of a context of millions would fill the memory.
        on_meta = device.type == "meta"
        tables = {name: torch.empty(shape) for name, shape in shapes.items()} if on_meta else build(device)
        for name, value in tables.items():
            self.register_buffer(name, value, persistent=False)

    def fill(self) -> None:
        """Compute the tables on the current device; needed after ``to_empty``, which leaves them uninitialized."""
        device = next(self.buffers()).device
        for name, value in self._build(device).items():
            setattr(self, name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Table":
        super()._apply(fn, recurse)
        # Computed anew, because casting back to fp32 would keep the rounding.
        if any(b.dtype != torch.float32 for b in self.buffers()):
            self.fill()
        return self


class _Sinusoids(_Table):
    values: Tensor


class Sinusoidal(Position):
    """Fixed sinusoids: sines in even columns, cosines in odd ones (Vaswani et al. 2017, §3.5)."""

    def __init__(self, *, d_model: int, max_seq_len: int, base: float) -> None:
        super().__init__()
        _check_base(base)

        def build(device: torch.device) -> dict[str, Tensor]:
            angles = _angles(max_seq_len, d_model + d_model % 2, base, device)
            table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
            return {"values": table[:, :d_model].contiguous()}

        self.table = _Sinusoids(build, values=(max_seq_len, d_model))

    def embed(self, x_BTC: Tensor, start: int | Tensor) -> Tensor:
        return x_BTC + _rows_at(self.table.values, start, x_BTC.shape[1])

    def record(self, step: StepRecorder) -> Tensor | None:
        return self.table.values

    def init_weights(self, std: float) -> None:
        self.table.fill()


class Rope(Position):
    """Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    ``tinyllm.nn.rope`` has variants with other frequencies, for longer contexts.

    Attributes:
        table_factor: factor on rotated queries and keys.
    """

    rotates = True
    table_factor = 1.0

    def __init__(self, *, max_seq_len: int, base: float) -> None:
        super().__init__()
        _check_base(base)
        self.max_seq_len, self.base = max_seq_len, base
        self.by_dim = nn.ModuleDict()  # one table per head size, shared by all layers that rotate heads of this size

    def frequencies(self, dim: int, device: torch.device) -> Tensor:
        """(dim/2,) float64: rotation per position of each pair, in radians."""
        return base_frequencies(self.base, dim, device)

    def rotary(self, dim: int) -> "Rotary":
        key = str(dim)
        if key not in self.by_dim:
            self.by_dim[key] = Rotary(self.frequencies, dim=dim, max_seq_len=self.max_seq_len, factor=self.table_factor)
        module = self.by_dim[key]
        assert isinstance(module, Rotary)
        return module

    def init_weights(self, std: float) -> None:
        for module in self.by_dim.values():
            assert isinstance(module, Rotary)
            module.fill()


class Rotary(_Table):
    """Rotates the pairs (x_i, x_{i+dim/2}) of each head by position · frequency_i, with fp32 tables.

    Pairs are split in halves, as in transformers, and not neighbors as in the paper: weights of Llama models are
    imported without a permutation, and each half is one contiguous slice.

    Args:
        frequencies: see ``Rope.frequencies``.
        factor: factor on the rotated pairs.

    Attributes:
        cos, sin: (positions, dim): factors on x_i and on the other element of its pair.

    Raises:
        ValueError: an odd ``dim``.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, frequencies: Callable[[int, torch.device], Tensor], *, dim: int, max_seq_len: int, factor: float = 1.0
    ) -> None:
        if dim % 2:
            raise ValueError(f"head_dim={dim} is odd: rotary positions rotate pairs, so it must be even")

        def build(device: torch.device) -> dict[str, Tensor]:
            angles = _angles_of(max_seq_len, frequencies(dim, device))
            cos, sin = angles.cos(), angles.sin()
            if factor != 1:
                cos, sin = cos * factor, sin * factor
            return {"cos": torch.cat((cos, cos), dim=-1), "sin": torch.cat((-sin, sin), dim=-1)}

        super().__init__(build, cos=(max_seq_len, dim), sin=(max_seq_len, dim))
        self._rows: tuple[Tensor, int, Tensor, Tensor] | None = None
        """Positions of rows that differ, their version, and their rows of the tables; all layers ask for the same."""

    def _rows_of(self, start: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, T, dim) of tokens at positions that differ from row to row."""
        is_decoding = n == 1 and start.ndim == 1 and not torch.is_grad_enabled() and not start.is_inference()
        if is_decoding and self._rows is not None and self._rows[0] is start and self._rows[1] == start._version:
            return self._rows[2:]
        cos, sin = (_rows_at(table, start, n)[:, None] for table in (self.cos, self.sin))
        self._rows = (start, start._version, cos, sin) if is_decoding else None
        return cos, sin

    def forward(self, x_BTHD: Tensor, start: int | Tensor) -> Tensor:
        """Rotate heads at positions start … start+T−1: (B, T, H, dim) → (B, H, T, dim), in the same dtype."""
        if isinstance(start, Tensor):
            cos, sin = self._rows_of(start, x_BTHD.shape[1])
        else:
            cos, sin = (_rows_at(table, start, x_BTHD.shape[1]) for table in (self.cos, self.sin))
        x_BHTD = x_BTHD.transpose(1, 2)
        if not torch.is_grad_enabled():  # the same in fewer calls: the overhead of calls dominates decoding
            swapped = x_BHTD.roll(x_BHTD.shape[-1] // 2, -1)
            return torch.addcmul(x_BHTD * cos, swapped, sin).to(x_BTHD.dtype)
        rotated = _Rotation.apply(x_BHTD, cos, sin)
        assert isinstance(rotated, Tensor)
        return rotated

    def record(self, step: StepRecorder) -> tuple[Tensor, Tensor]:
        """For decoding in C++: the tables."""
        return self.cos, self.sin


class _Rotation(torch.autograd.Function):
    """The rotation in few passes over memory; its gradient is the inverse rotation, so only the tables are saved."""

    @staticmethod
    def forward(ctx: Any, x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BHTD, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_BHTD, cos, -sin), None, None


def _rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BHTD.shape[-1] // 2
    at_least_fp32 = torch.promote_types(x_BHTD.dtype, torch.float32)
    # Transposed, converted and made contiguous for the slices below in a single pass.
    x = torch.empty(x_BHTD.shape, dtype=at_least_fp32, device=x_BHTD.device).copy_(x_BHTD)
    rotated = x * cos
    rotated[..., :half].addcmul_(x[..., half:], sin[..., :half])
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated.to(x_BHTD.dtype)


def _rows_at(table: Tensor, start: int | Tensor, n: int) -> Tensor:
    """Rows start … start+n−1 of a table (positions, size): (n, size), (B, n, size) if start is (B,) or (B, n)."""
    if isinstance(start, int):
        return table[start : start + n]
    if start.ndim == 2:
        return table[start]
    return table[start.to(table.device)[:, None] + torch.arange(n, device=table.device)]


def _angles(n: int, dim: int, base: float, device: torch.device) -> Tensor:
    """(n, dim/2): position · base^(−2i/dim), computed in float64 and rounded once."""
    return _angles_of(n, base_frequencies(base, dim, device))


def base_frequencies(base: float, dim: int, device: torch.device) -> Tensor:
    """(dim/2,) float64: base^(−2i/dim).

    Raises:
        ValueError: a frequency is so large that angles would overflow fp32.
    """
    if base ** (2 / dim - 1) > MAX_FREQUENCY:
        raise ValueError(f"base={base} is too small: with head_dim={dim}, angles overflow fp32")
    return torch.as_tensor(base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim))


def _angles_of(n: int, frequencies: Tensor) -> Tensor:
    """(n, dim/2) fp32: the angle of each pair at positions 0 … n−1."""
    # float64, because the fp32 product of a large position and a frequency is off by a visible part of a turn
    return (torch.arange(n, dtype=torch.float64, device=frequencies.device)[:, None] * frequencies).float()


def _check_base(base: float) -> None:
    if base <= 0:
        raise ValueError(f"base={base} must be positive")
