"""The linear layer of every part, and how its weights begin."""

from torch import nn


class Linear(nn.Linear):
    """``torch.nn.Linear`` with keyword arguments, whose weights begin when the model says so."""

    def __init__(self, *, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: the model draws every weight once, in one order, by ``init_weights``."""

    def init_weights(self, std: float) -> None:
        """Weights from N(0, std²), biases 0."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def flops(self) -> int:
        """Floating-point operations for one input vector: a multiplication and an addition per weight."""
        return 2 * self.weight.numel()
