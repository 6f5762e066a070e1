"""How much memory training takes, without taking it."""

from typing import Any

import torch
from torch import Tensor, nn

from tinyllm.nn.attention.attend import kept_weights


def activation_bytes(
    model: nn.Module, *, batch_size: int, seq_len: int, n_heads: int, device: str, dtype: torch.dtype
) -> int:
    """Bytes that one forward pass keeps for its backward pass, head and loss apart. An estimate.

    One token passes through the model on the meta device, and every tensor that autograd asks to keep is counted once;
    the attention weights that a kernel keeps are added, because they grow with the square of the length. All of it is
    taken to be of ``dtype``, which leaves out what autocast keeps in fp32.

    Args:
        model: on the meta device.
        n_heads: query heads of a layer.
        device: the kind of device that will train.
    """
    weights = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.numel()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(1, 1, dtype=torch.int64, device="meta"))
    layers = getattr(model, "n_layers", 0)
    values = batch_size * seq_len * sum(kept.values())
    values += batch_size * layers * n_heads * kept_weights(device, dtype, seq_len)
    return values * dtype.itemsize


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, the same for all its views, on the meta device too."""
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)
