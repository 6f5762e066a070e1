"""Context extension for rotary positions: variants of ``Rope`` that read contexts longer than those trained on.

Each changes the frequencies as ``transformers`` does for the ``rope_type`` of the same name.
"""

import math

import torch
from torch import Tensor

from tinyllm.nn.position import Rope, Rotary, base_frequencies


class LinearRope(Rope):
    """Position interpolation (Chen et al. 2023): positions divided by ``factor``.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, *, max_seq_len: int, base: float, factor: float) -> None:
        super().__init__(max_seq_len=max_seq_len, base=base)
        self.factor = _at_least_one(factor)

    def frequencies(self, dim: int, device: torch.device) -> Tensor:
        return super().frequencies(dim, device) / self.factor


class ScaledRope(Rope):
    """Base class of the variants that know the original context.

    Args:
        factor: ratio of the extended context to the original one.
        original_max_seq_len: the context trained on; None: max_seq_len / factor.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, *, max_seq_len: int, base: float, factor: float, original_max_seq_len: int | None) -> None:
        super().__init__(max_seq_len=max_seq_len, base=base)
        if base <= 1:
            raise ValueError(f"base={base} must be more than 1, so that frequencies decrease from pair to pair")
        self.factor = _at_least_one(factor)
        if original_max_seq_len is None:
            original_max_seq_len = max(1, round(max_seq_len / factor))
        if original_max_seq_len < 1:
            raise ValueError(f"original_max_seq_len={original_max_seq_len} must be at least 1")
        self.original_max_seq_len = original_max_seq_len


class NtkRope(ScaledRope):
    """NTK-aware scaling for the model's context: a larger base, which slows low frequencies most.

    These are the frequencies that ``dynamic`` scaling in transformers gives a sequence of ``max_seq_len`` tokens. Here
    they do not depend on the sequence's length, so that cached keys stay valid. Up to the original context they equal
    those of ``Rope``.
    """

    def rotary(self, dim: int) -> Rotary:
        if dim < 4:
            raise ValueError(f"head_dim={dim} is too small for NTK scaling: it must be at least 4")
        return super().rotary(dim)

    def frequencies(self, dim: int, device: torch.device) -> Tensor:
        # The base grows by growth^(dim/(dim−2)), so that the lowest frequency is divided by exactly ``growth``.
        growth = self.factor * self.max_seq_len / self.original_max_seq_len - (self.factor - 1)
        return base_frequencies(self.base * max(1.0, growth) ** (dim / (dim - 2)), dim, device)


class YarnRope(ScaledRope):
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071): interpolates low frequencies, keeps high ones.

    Args:
        beta_fast: pairs with at least this many turns within the original context keep their frequency.
        beta_slow: pairs with at most this many turns are interpolated; between the two, frequencies are blended.
        attention_factor: factor on rotated queries and keys; None: 0.1·ln(factor) + 1, or as given by ``mscale``.
        mscale: attention_factor = (0.1·mscale·ln(factor) + 1) / (0.1·mscale_all_dim·ln(factor) + 1).
        mscale_all_dim: MLA's attention scores are multiplied with (0.1·mscale_all_dim·ln(factor) + 1)² (DeepSeek-V2).
        truncate: round the bounds of the blend to whole pairs.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        *,
        max_seq_len: int,
        base: float,
        factor: float,
        original_max_seq_len: int | None,
        beta_fast: float,
        beta_slow: float,
        attention_factor: float | None,
        mscale: float | None,
        mscale_all_dim: float | None,
        truncate: bool,
    ) -> None:
        super().__init__(max_seq_len=max_seq_len, base=base, factor=factor, original_max_seq_len=original_max_seq_len)
        if not beta_fast > beta_slow > 0:
            raise ValueError(f"beta_slow={beta_slow} must be positive and less than beta_fast={beta_fast}")
        factors = {"attention_factor": attention_factor, "mscale": mscale, "mscale_all_dim": mscale_all_dim}
        for name, value in factors.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        if mscale is not None and (mscale_all_dim is None or attention_factor is not None):
            raise ValueError(f"mscale={mscale} needs mscale_all_dim, and cannot be combined with attention_factor")
        self.beta_fast, self.beta_slow, self.truncate = beta_fast, beta_slow, truncate
        self.attention_factor, self.mscale, self.mscale_all_dim = attention_factor, mscale, mscale_all_dim
        default = self._magnitude(1.0 if mscale is None else mscale)
        default /= self._magnitude(None if mscale is None else mscale_all_dim)
        self.table_factor = default if attention_factor is None else attention_factor
        self.score_factor = self._magnitude(mscale_all_dim) ** 2

    def _magnitude(self, scale: float | None) -> float:
        return 1.0 if scale is None else 0.1 * scale * math.log(self.factor) + 1.0

    def frequencies(self, dim: int, device: torch.device) -> Tensor:
        low, high = (self._pair_of(turns, dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)  # dim and not dim/2, as in the authors' code and in transformers
        steps = torch.arange(dim // 2, dtype=torch.float64, device=device)
        interpolated = ((steps - low) / ((high - low) or 0.001)).clamp(0, 1)  # low = high: a step, not 0/0
        frequencies = super().frequencies(dim, device)
        return frequencies * (1 - interpolated) + frequencies / self.factor * interpolated

    def _pair_of(self, turns: float, dim: int) -> float:
        """Fractional index of the pair with this many turns within the original context."""
        return dim * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(self.base))


class Llama3Rope(ScaledRope):
    """Llama 3.1's scaling (Llama Team 2024): stretches wavelengths that are long relative to the original context.

    Args:
        low_freq_factor: pairs with a wavelength above original_max_seq_len / this rotate ``factor`` times slower.
        high_freq_factor: pairs with a wavelength below original_max_seq_len / this are unchanged; between the two,
            frequencies are blended.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        *,
        max_seq_len: int,
        base: float,
        factor: float,
        original_max_seq_len: int | None,
        low_freq_factor: float,
        high_freq_factor: float,
    ) -> None:
        super().__init__(max_seq_len=max_seq_len, base=base, factor=factor, original_max_seq_len=original_max_seq_len)
        if not high_freq_factor > low_freq_factor > 0:
            raise ValueError(
                f"low_freq_factor={low_freq_factor} must be positive and less than high_freq_factor={high_freq_factor}"
            )
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor

    def frequencies(self, dim: int, device: torch.device) -> Tensor:
        frequencies = super().frequencies(dim, device)
        turns = self.original_max_seq_len * frequencies / (2 * math.pi)  # within the original context
        unchanged = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequencies * unchanged + frequencies / self.factor * (1 - unchanged)


def _at_least_one(factor: float) -> float:
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor={factor} must be at least 1 and finite")
    return factor
