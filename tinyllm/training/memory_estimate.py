"""How much memory training takes, without taking it."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

FP32 = 4
"""Bytes of a weight, and of its gradient; in half precision autocast works on copies."""


def trained_bytes(parameters: int, of_optimizer: int, *, averaged: bool, ranks: int = 1) -> int:
    """Bytes that a rank keeps of weights, gradients, optimizer state and perhaps an average of the weights.

    Args:
        of_optimizer: bytes of its state.
        averaged: ``ema.enabled``.
        ranks: how many keep a part each.
    """
    return (FP32 * parameters * (3 if averaged else 2) + of_optimizer) // ranks


TOKENS = 2
"""How many are tried: a single one needs no copies where several are transposed."""


def activation_bytes(model: Any, *, batch_size: int, seq_len: int, device: str, dtype: torch.dtype) -> int:
    """Bytes that one forward pass keeps for its backward pass, head and loss apart. An estimate.

    Two tokens pass through a block of each kind, and every tensor that autograd asks to keep is counted once; what an
    attention kernel keeps besides is added, because it grows with the square of the length. All of it is taken to be of
    ``dtype``, which leaves out what autocast keeps in fp32.

    Args:
        model: on the meta device.
        device: the kind of device that will train.
    """
    blocks = model.layers()
    per_token = {kind: kept_values(blocks[kind], model.d_model) for kind in dict.fromkeys(model.kinds)}
    whole = [
        seq_len * per_token[kind] + block.attn.saved_activations(device, dtype, seq_len)
        for kind, block in zip(model.kinds, blocks, strict=True)
    ]
    again = [values for i, values in enumerate(whole) if model.recomputes(i)]
    # What is computed again keeps its input, and the backward pass holds one such block whole at a time.
    kept = sum(whole) - sum(again) + len(again) * seq_len * model.d_model + max(again, default=0)
    return batch_size * (seq_len * kept_values(model.norm, model.d_model) + kept) * dtype.itemsize


def kept_values(part: nn.Module, width: int) -> int:
    """Numbers that autograd keeps per token that passes through a part, parameters and buffers apart.

    The part is given memory on the CPU that nothing is written into, so the system sets none aside. (On the meta device
    the operations would be others, and the first ones would import sympy and torch's compiler.)
    """
    part = deepcopy(part)._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # as to_empty does
    own = {_storage(tensor) for tensor in [*part.parameters(), *part.buffers()]}
    kept: dict[int, Tensor] = {}  # the tensors stay alive, so that no memory is used twice

    def keep(tensor: Tensor) -> int:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor
        return _storage(tensor)

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda storage: storage)
    with hooks, torch.random.fork_rng(devices=[]):  # dropout draws
        part(torch.zeros(1, TOKENS, width, requires_grad=True))
    # a view keeps all of the memory that it is a part of
    total = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())
    kept.clear()  # the graph holds the hook that holds the tensors that hold the graph: nobody would ever free them
    return total // TOKENS


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, the same for all its views."""
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)
