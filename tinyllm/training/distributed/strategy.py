"""Strategy: how many processes train together, and which part of the state each of them holds.

Other code calls its methods and never checks which strategy is in use.
"""

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
    """The interface of a strategy; its defaults are those of a single process."""

    rank = 0
    world_size = 1
    is_sharded = False
    """Whether each rank holds only a part of the weights, gradients and optimizer state."""
    writers = 1
    """Number of ranks that write parts of a checkpoint: ranks 0 … writers−1."""

    def device(self, device: torch.device) -> torch.device:
        """This rank's device, of the same type as ``device``."""
        return device

    def running(self, device: torch.device, *, backend: str, timeout_s: float) -> AbstractContextManager[None]:
        """The context in which the ranks are connected; see :meth:`ProcessGroup.running`."""
        return nullcontext()

    def placer(self, device: torch.device, dtype: torch.dtype) -> Callable[[Any], Any] | None:
        """A function that initializes a model built on the meta device; None: build it with its weights.

        Args:
            dtype: dtype of autocast.
        """
        return None

    def reference_placer(self, device: torch.device, dtype: torch.dtype) -> Callable[[Any], Any] | None:
        """The same for a second model, which is not trained."""
        return None

    def wrap(self, objective: Objective, *, find_unused: str | bool) -> Callable[..., Any]:
        """The callable that training uses as the objective; ``find_unused``: ``distributed.find_unused_parameters``."""
        return objective

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of a micro-batch's forward and backward pass; the last one all-reduces the gradients."""
        return nullcontext()

    def gather(self, values: Values) -> list[Values]:
        """All-gather: the values of every rank, by rank; all ranks must pass the same number of values."""
        return [values]

    def gather_objects(self, thing: Any) -> list[Any]:
        """All-gather of a small picklable object, by rank."""
        return [thing]

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0 alone; returns its result, or raises its error, on every rank."""
        return action()

    def report_step(self, step: int) -> None:
        """Record that this rank begins a step, for the heartbeat."""

    def name_rank(self, error: Exception, step: int) -> Exception:
        """The error to show: with several ranks, it names the rank that failed."""
        return error

    def check_replicas_equal(self, model: nn.Module) -> None:
        """Refuse to save if replicas of the weights, which must be equal on all ranks, differ.

        Raises:
            RankError: the weights of a rank differ from those of rank 0.
        """

    def rows(self, name: str, tensor: Tensor) -> slice | None:
        """The rows of a model tensor that this rank holds; None: all."""
        return None

    def local_tensor(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that this rank holds, sharing its memory."""
        return tensor

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """A copy of this rank's part of ``whole``, on the device and with the sharding of ``parameter``."""
        return whole.to(parameter.device, copy=True)

    def owns(self, name: str) -> bool:
        """Whether this rank writes the model tensor ``name``, with its optimizer state, into a checkpoint."""
        return self.rank == 0

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The full tensor, for a checkpoint; all ranks must call it."""
        return tensor

    def part(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The full tensors that this rank owns; all ranks must call it."""
        return {name: full for name, tensor in named.items() for full in [self.full_tensor(tensor)] if self.owns(name)}

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        """The context for evaluation and sampling: forward passes without training."""
        yield

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer that does not work with this strategy.

        Raises:
            UserError: it needs full weights and the strategy shards them.
        """


class SingleProcess(Strategy):
    """One process: rank 0 of 1.

    Raises:
        UserError: torchrun started several.
    """

    def __init__(self) -> None:
        if (size := started_processes()) > 1:
            hint = "omit strategy, or start without torchrun"
            raise UserError(f"torchrun started {size} processes", key="strategy", value="single", hint=hint)
