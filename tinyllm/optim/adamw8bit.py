"""AdamW whose two moments take a byte per weight each."""

from typing import Any

from torch.optim import Optimizer

from tinyllm.errors import UserError
from tinyllm.optim.checks import decay_rates, not_negative
from tinyllm.optim.memory import Groups, keeps

SMALLEST = 4096
"""Weights of a tensor from which on its moments are quantised."""
BLOCK = 256
"""Weights that share a scale."""
DEVICES = frozenset({"cpu", "cuda", "xpu", "meta"})


def kept(groups: Groups, **settings: Any) -> int:
    """Two moments of a byte each with an fp32 scale per block; of small tensors and embeddings two in fp32."""
    total = 0
    for group in groups:
        for p in group["params"]:
            precise = group["kind"] == "embedding" or p.numel() < SMALLEST
            total += 8 * p.numel() if precise else 2 * (p.numel() + 4 * -(-p.numel() // BLOCK))
    return total


@keeps(kept)
def adamw8bit(
    params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Optimizer:
    """bitsandbytes' AdamW8bit (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861).

    The moments are quantised in blocks of 256; tensors of fewer than 4096 weights and embedding tables keep fp32
    moments, the latter because their gradients are the most uneven (ibid., §2.3).

    Args:
        params: parameter groups with their ``kind``; a group's own ``weight_decay`` wins.

    Raises:
        UserError: bitsandbytes is not installed.
        ValueError: a hyper-parameter is out of range, or the device has no such kernels.
    """
    not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    decay_rates(betas)
    devices = {parameter.device.type for group in params for parameter in group["params"]}
    if not devices <= DEVICES:
        device = min(devices - DEVICES)
        raise ValueError(f"adamw8bit has no kernels for device={device}: choose another optimizer or device")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        hint = "pip install 'tinyllm[8bit]', or choose optimizer=adamw"
        raise UserError("bitsandbytes is not installed", key="optimizer", value="adamw8bit", hint=hint) from error

    class Precise(AdamW8bit):
        """fp32 moments for embeddings, by group instead of bitsandbytes' process-wide table of overrides."""

        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return config | {"optim_bits": 32} if group["kind"] == "embedding" else config

    optimizer: Optimizer = Precise(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
    return optimizer
