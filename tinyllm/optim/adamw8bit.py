"""AdamW with 8-bit moments."""

from typing import Any

from torch.optim import Optimizer

from tinyllm.optim.base import QUANTIZED_BLOCK, Groups, check_betas, check_not_negative, declares_state_bytes
from tinyllm.utils.late_imports import library

MIN_QUANTIZED = 4096
"""bitsandbytes quantizes the moments of tensors with at least this many weights."""
DEVICES = frozenset({"cpu", "cuda", "xpu", "meta"})
"""Devices with 8-bit kernels, and meta, where nothing is computed."""


def state_bytes(groups: Groups, **settings: Any) -> int:
    """Two moments of a byte each with an fp32 scale per block; in fp32 for small tensors and embeddings."""
    total = 0
    for group in groups:
        for p in group["params"]:
            in_fp32 = group["kind"] == "embedding" or p.numel() < MIN_QUANTIZED
            total += 8 * p.numel() if in_fp32 else 2 * (p.numel() + 4 * -(-p.numel() // QUANTIZED_BLOCK))
    return total


class FP32EmbeddingMoments:
    """Mixin for AdamW8bit: fp32 moments for embeddings, set per group.

    bitsandbytes' own mechanism, a global table of overrides, would apply to every optimizer in the process.
    """

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        return config | {"optim_bits": 32} if group["kind"] == "embedding" else config


@declares_state_bytes(state_bytes)
def adamw8bit(
    params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Optimizer:
    """bitsandbytes' AdamW8bit (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861).

    The moments are quantized in blocks of 256. Tensors of fewer than 4096 weights and embedding tables keep fp32
    moments; embeddings do because their gradients are the most uneven (ibid., §2.3).

    Args:
        params: parameter groups with their ``kind``; a group's own ``weight_decay`` overrides the argument.

    Raises:
        UserError: bitsandbytes is not installed.
        ValueError: a hyper-parameter is out of range, or the device has no 8-bit kernels.
    """
    check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    check_betas(betas)
    devices = {parameter.device.type for group in params for parameter in group["params"]}
    if not devices <= DEVICES:
        device = min(devices - DEVICES)
        raise ValueError(f"adamw8bit has no kernels for device={device}: choose a different optimizer or device")
    hint = "pip install 'tinyllm[8bit]', or choose optimizer=adamw"
    bitsandbytes = library("bitsandbytes.optim", hint=hint, key="optimizer", value="adamw8bit")
    # The class is created here because its base class may not be installed.
    cls = type("AdamW8bit", (FP32EmbeddingMoments, bitsandbytes.AdamW8bit), {})
    optimizer: Optimizer = cls(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
    return optimizer
