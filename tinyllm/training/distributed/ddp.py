"""Data parallel (DDP): every rank holds the whole model and trains on a part of the batch."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyllm.errors import RankError
from tinyllm.training.distributed.process_group import ProcessGroup
from tinyllm.training.distributed.shared_memory import SharedSum
from tinyllm.training.objectives.base import Objective

SYNC_BUFFERS = next(
    name  # torch 2.13 renamed it
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class DDP(ProcessGroup):
    """torch's DistributedDataParallel (Li et al. 2020, https://arxiv.org/abs/2006.15704) with summed gradients.

    Each rank's loss is already divided by the tokens of all ranks, so the gradients are summed, not averaged. The sum
    has the same bits as that of a single process that takes the micro-batches in turn.
    """

    _wrapped: DistributedDataParallel

    def wrap(self, objective: Objective, *, find_unused: str | bool) -> Callable[..., Any]:
        unused = misses_gradients(objective) if find_unused == "auto" else bool(find_unused)
        device = next(objective.parameters()).device
        unsynced: Any = {SYNC_BUFFERS: False}  # buffers are constant, or computed from all-reduced values
        self._wrapped = DistributedDataParallel(
            objective,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=unused,
            gradient_as_bucket_view=True,
            **unsynced,
        )
        shared = SharedSum.where_possible(
            device, rank=self.rank, world_size=self.world_size, gather_objects=self.gather_objects
        )
        self._wrapped.register_comm_hook(shared, _sum)
        return self._wrapped

    @torch.no_grad()
    def check_replicas_equal(self, model: nn.Module) -> None:
        # Sums of the bit patterns, hence exact.
        sums = [p.view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
        first, *others = self.gather_objects(torch.stack(sums).tolist())
        for rank, rank_sums in enumerate(others, start=1):
            if rank_sums != first:
                names = [name for name, _ in model.named_parameters()]
                name = next(name for name, a, b in zip(names, first, rank_sums, strict=True) if a != b)
                hint = "a hardware fault or a bug; resume from the last checkpoint"
                raise RankError(f"the weights of rank {rank} differ from those of rank 0", file=name, hint=hint)

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._wrapped.no_sync()


# A hook replaces DDP's own all-reduce, which divides by the number of ranks.
def _sum(shared: SharedSum | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    if shared is not None:
        shared(bucket.buffer())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def misses_gradients(objective: Objective) -> bool:
    """Whether a backward pass over two tokens leaves a parameter without a gradient; changes nothing."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    device = parameters[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loss = objective(objective.example(sequences=1, length=2)).share_of_step(weight=2, fraction=1.0)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return any(gradient is None for gradient in gradients)
