"""Short causal convolutions: each token is mixed with the few before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConv(nn.Module):
    """A causal depthwise convolution over the last K tokens, added to its input: y_t = x_t + Σ_{i<K} w_i ⊙ x_{t−i}.

    Attention alone has to spend a head to read the token before; here each channel does so for K weights (Primer's
    depthwise convolutions, So et al. 2021, §4; Canon layers, Allen-Zhu 2025, https://arxiv.org/abs/2512.17351). All
    weights start at 0, so the layer starts as the identity.

    Args:
        dim: number of channels C.
        width: K, at least 2.

    Attributes:
        taps_KC: row i weights the token i positions back.

    Raises:
        ValueError: ``width`` is out of range.
    """

    def __init__(self, *, dim: int, width: int) -> None:
        super().__init__()
        if width < 2:
            raise ValueError(f"width={width} must be at least 2: the token itself and the one before it")
        self.taps_KC = nn.Parameter(torch.zeros(width, dim))

    @property
    def memory(self) -> int:
        """Number of earlier tokens that an output depends on: K − 1."""
        return self.taps_KC.shape[0] - 1

    def forward(
        self,
        x_BTC: Tensor,
        *,
        start: int | Tensor = 0,
        recent_BMC: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) → (B, T, C), in the dtype of ``x_BTC``.

        Args:
            start: position of the first token; (B,) where the rows differ; (B, T), the position of every token in its
                document, where rows hold several documents. Tokens before position 0 count as zeros.
            recent_BMC: the M = K−1 inputs before these, from a cache, which the last M replace; None: x_BTC is all.
        """
        memory, length = self.memory, x_BTC.shape[1]
        if recent_BMC is None:
            padded = F.pad(x_BTC, (0, 0, memory, 0))
        else:
            before = torch.arange(-memory, 0, device=x_BTC.device)[:, None]
            first = start.to(x_BTC.device)[:, None, None] if isinstance(start, Tensor) else start
            # What an earlier sequence left in the cache is replaced by zeros, never multiplied by them.
            padded = torch.cat((torch.where(before + first >= 0, recent_BMC.to(x_BTC.dtype), 0.0), x_BTC), dim=1)
            recent_BMC.copy_(padded[:, length:])
        positions_BT1 = start[..., None] if isinstance(start, Tensor) and start.ndim == 2 else None
        # In fp32 and added tap by tap: torch's depthwise convolution is no faster for so few taps, and may round
        # differently with the number of tokens.
        taps_KC = self.taps_KC.to(torch.promote_types(self.taps_KC.dtype, torch.float32))
        y = x_BTC.to(taps_KC.dtype)
        for back, tap_C in enumerate(taps_KC.unbind()):
            earlier = padded[:, memory - back : memory - back + length]
            if positions_BT1 is not None and back:  # the token is in the same document
                earlier = torch.where(positions_BT1 >= back, earlier, 0.0)
            y = torch.addcmul(y, earlier.to(y.dtype), tap_C)
        return y.to(x_BTC.dtype)

    def init_weights(self) -> None:
        nn.init.zeros_(self.taps_KC)
