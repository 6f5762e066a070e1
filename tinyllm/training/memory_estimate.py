"""Estimated memory of training, counted without a run."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

FP32 = 4
"""Bytes of a weight and of its gradient; half precision is autocast, which uses copies."""


def trained_bytes(
    parameters: int, of_optimizer: int, *, trained: int, averaged: bool, reference: bool = False, ranks: int = 1
) -> int:
    """Bytes per rank for weights, gradients, optimizer state and, if any, averaged weights and those of a reference.

    Args:
        parameters: number of all weights.
        trained: number of those that are not frozen, which have a gradient and an average.
        of_optimizer: bytes of the optimizer state.
        averaged: ``ema.enabled``.
        reference: a second model is compared with in every step.
        ranks: ranks that the tensors are sharded over.
    """
    weights = parameters * (2 if reference else 1) + trained * (2 if averaged else 1)
    return (FP32 * weights + of_optimizer) // ranks


TOKENS = 2
"""Tokens of the trial pass. With a single one, transposes would need no copies and be left out."""


def activation_bytes(model: Any, *, batch_size: int, seq_len: int, device: str, dtype: torch.dtype) -> int:
    """Estimated bytes of the activations saved for the backward pass, without those of head and loss.

    Two tokens pass through one block of each kind, and every tensor that autograd saves counts once. What attention
    kernels save is added by formula, because it may grow with the square of the length. All tensors are taken to be of
    ``dtype``; those that autocast keeps in fp32 are therefore underestimated.

    Args:
        model: on the meta device.
        device: the kind of device that will train.
    """
    blocks = model.layers()
    per_token = {first: kept_values(blocks[first], model.d_model) for first in dict.fromkeys(model.first_of_kind)}
    whole = [
        seq_len * per_token[first] + block.attn.saved_activations(device, dtype, seq_len)
        for first, block in zip(model.first_of_kind, blocks, strict=True)
    ]
    again = [values for i, values in enumerate(whole) if model.recomputes(i)]
    # A recomputed block saves its input alone; the backward pass holds the activations of one such block at a time.
    kept = sum(whole) - sum(again) + len(again) * seq_len * model.d_model + max(again, default=0)
    return batch_size * (seq_len * kept_values(model.norm, model.d_model) + kept) * dtype.itemsize


def kept_values(part: nn.Module, width: int) -> int:
    """Values that autograd saves per token in a part of the model, without parameters and buffers.

    The part runs on the CPU with uninitialized weights, for which the system commits no memory. On the meta device
    other kernels would run, and the first would import sympy and torch's compiler.
    """
    part = deepcopy(part)._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # as to_empty does
    own = {_storage(tensor) for tensor in [*part.parameters(), *part.buffers()]}
    kept: dict[int, Tensor] = {}  # kept alive, so that no two storages have the same address

    def keep(tensor: Tensor) -> int:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor
        return _storage(tensor)

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda storage: storage)
    with hooks, torch.random.fork_rng(devices=[]):  # dropout draws random numbers
        part(torch.zeros(1, TOKENS, width, requires_grad=True))
    # a saved view keeps the whole storage alive
    total = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())
    kept.clear()  # breaks a reference cycle: graph → hook → tensors → graph
    return total // TOKENS


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage, which all its views share."""
    storage: Any = tensor.untyped_storage()
    return int(storage._cdata)
