"""Sharded data parallel (FSDP): every rank holds a part of each weight, its gradient and its optimizer state."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import distribute_tensor

from tinyllm.errors import UserError
from tinyllm.training.distributed.process_group import ProcessGroup
from tinyllm.utils.tensors import full_tensor, is_sharded, local_tensor


class FSDP(ProcessGroup):
    """torch's ``fully_shard`` (FSDP2; Zhao et al. 2023, https://arxiv.org/abs/2304.11277) with summed gradients.

    A block is gathered while it computes and freed afterwards; the rest (embeddings, last norm, head) is gathered once
    per pass. The model is built on meta and initialized block by block, so no process ever holds all of it. In half
    precision, blocks are gathered in that dtype and gradients are reduced in fp32.

    Args:
        reshard_after_forward: free a block after its forward pass and gather it again for the backward pass.
    """

    is_sharded = True

    def __init__(self, *, nproc_per_node: int | None, gpus_per_job: int | None, reshard_after_forward: bool) -> None:
        super().__init__(nproc_per_node=nproc_per_node, gpus_per_job=gpus_per_job)
        self.reshard_after_forward = reshard_after_forward
        self.writers = self.world_size
        self._model: Any = None
        self._owners: dict[str, int] = {}

    def placer(self, device: torch.device, dtype: torch.dtype) -> Callable[[Any], Any]:
        return partial(self._place, device=device, dtype=dtype)

    def reference_placer(self, device: torch.device, dtype: torch.dtype) -> Callable[[Any], Any]:
        return partial(self._shard, device=device, dtype=dtype)

    def _place(self, model: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Initialize and shard the model that is trained."""
        self._model, self._owners = self._shard(model, device=device, dtype=dtype), owners(model, self.world_size)
        return self._model

    def _shard(self, model: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Initialize and shard a model that was built on meta.

        Its parts are drawn in the same order and from the same random stream as those of an unsharded model, so both
        start from the same weights.
        """
        mesh = init_device_mesh(device.type, (self.world_size,))
        policy = MixedPrecisionPolicy()
        if dtype != torch.float32:
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        blocks = {id(block) for block in model.layers()}
        for part, fill in model.parts():
            part._apply(_given_memory)
            fill()
            part.to(device)
            if id(part) in blocks:
                reshard = self.reshard_after_forward
                fully_shard(part, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
        # Embedding, norm and head are needed at both ends of a pass: gathering them again would be pure cost.
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(model, "forward_with_routing")
        for part in [model, *model.layers()]:
            part.set_gradient_divide_factor(1.0)  # sum and not mean: the loss is divided by the tokens of all ranks
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
        return model

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        self._model.set_requires_gradient_sync(last)
        return nullcontext()

    def rows(self, name: str, tensor: Tensor) -> slice | None:
        if not is_sharded(tensor):
            return None
        per_rank = -(-tensor.shape[0] // self.world_size)
        first = min(self.rank * per_rank, tensor.shape[0])
        return slice(first, min(first + per_rank, tensor.shape[0]))

    def local_tensor(self, tensor: Tensor) -> Tensor:
        return local_tensor(tensor)

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        moved = whole.to(parameter.device, copy=True)
        if not is_sharded(parameter):
            return moved
        placed: Any = parameter
        return distribute_tensor(moved, placed.device_mesh, placed.placements, src_data_rank=None)

    def owns(self, name: str) -> bool:
        return self._owners.get(name, 0) == self.rank

    def full_tensor(self, tensor: Tensor) -> Tensor:
        return full_tensor(tensor).cpu()

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        """The context for evaluation and sampling; reshards the root weights, since no backward pass will."""
        try:
            yield
        finally:
            self._model.reshard()

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if any(kind.__module__.startswith("bitsandbytes") for kind in type(optimizer).__mro__):
            hint = "it quantizes full weights block by block; use strategy=ddp, or a different optimizer"
            raise UserError("the optimizer needs full weights", key="strategy", value="fsdp", hint=hint)


def owners(model: nn.Module, world_size: int) -> dict[str, int]:
    """The rank that writes each model tensor into a checkpoint; every rank writes about the same amount."""
    tensors = model.state_dict()
    total, before, ranks = sum(tensor.numel() for tensor in tensors.values()), 0, {}
    for name, tensor in tensors.items():
        ranks[name] = min(world_size * before // max(total, 1), world_size - 1)
        before += tensor.numel()
    return ranks


def _given_memory(tensor: Tensor) -> Tensor:
    """An uninitialized CPU tensor in place of a meta tensor; any other tensor, such as a shared table, unchanged."""
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor
