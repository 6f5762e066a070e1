"""How many processes train together. A strategy is asked for its rank and what is to be done, never for its kind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.environment import started_processes

T = TypeVar("T")
Values = list[float]


class Strategy:
    """What training asks of the processes that share it; by itself one process that has everything."""

    rank = 0
    world_size = 1
    is_sharded = False
    """Whether each rank keeps a part of the weights, gradients and optimizer state only."""
    writers = 1
    """How many ranks write parts of a checkpoint: ranks 0 … writers−1."""

    def device(self, device: torch.device) -> torch.device:
        """This rank's device, of the kind of ``device``."""
        return device

    def running(self, device: torch.device, *, backend: str, timeout_s: float) -> AbstractContextManager[None]:
        """The context in which the ranks are connected."""
        return nullcontext()

    def placer(self, device: torch.device, dtype: torch.dtype) -> Callable[[Any], Any] | None:
        """What gives a model that was built on the meta device its weights; None: it is built with them.

        Args:
            dtype: what autocast computes in.
        """
        return None

    def wrap(self, objective: Objective, *, find_unused: str | bool) -> Callable[..., Any]:
        """The objective as it is called in training."""
        return objective

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of a micro-batch's forward and backward pass; gradients are summed over the ranks in the last."""
        return nullcontext()

    def gather(self, values: Values) -> list[Values]:
        """The values of every rank, of each as many."""
        return [values]

    def gather_objects(self, thing: Any) -> list[Any]:
        """One small thing of every rank: plain containers and tensors."""
        return [thing]

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """What rank 0's ``action`` returns, on every rank; its error ends them all."""
        return action()

    def report_step(self, step: int) -> None:
        """Record that this rank begins a step, for the heartbeat."""

    def explained(self, error: Exception, step: int) -> Exception:
        """The error as it is shown: with several ranks, which one it is about."""
        return error

    def check_alike(self, model: nn.Module) -> None:
        """Refuse to save weights that differ between ranks which should have the same.

        Raises:
            RankError: they do.
        """

    def rows(self, name: str, tensor: Tensor) -> slice | None:
        """Which rows of one of the model's tensors this rank has; None: all."""
        return None

    def local_tensor(self, tensor: Tensor) -> Tensor:
        """The memory that this rank has of a tensor."""
        return tensor

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """A copy of this rank's part of a tensor of a parameter's shape, placed as the parameter is."""
        return whole.to(parameter.device, copy=True)

    def owns(self, name: str) -> bool:
        """Whether this rank writes what belongs to the model's tensor ``name`` into a checkpoint."""
        return self.rank == 0

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """All of a tensor, for a checkpoint; every rank has to call it."""
        return tensor

    def part(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the model's tensors that this rank owns, whole; every rank has to call it."""
        return {name: full for name, tensor in named.items() for full in [self.full_tensor(tensor)] if self.owns(name)}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The context of an evaluation or a sample, in which the model is called and not trained."""
        yield

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer that cannot work on what the strategy makes of the weights.

        Raises:
            UserError: it cannot.
        """


class SingleProcess(Strategy):
    """One process: rank 0 of 1.

    Raises:
        UserError: torchrun started several.
    """

    def __init__(self) -> None:
        if (size := started_processes()) > 1:
            hint = "leave strategy out, or start it without torchrun"
            raise UserError(f"torchrun started {size} processes", key="strategy", value="single", hint=hint)
