"""Several processes that torchrun started, connected by torch.distributed."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tinyllm.errors import RankError, UserError, one_line
from tinyllm.training.distributed.heartbeat import Heartbeat
from tinyllm.training.distributed.strategy import Strategy, Values
from tinyllm.utils.environment import rank, started_processes
from tinyllm.utils.stop_signal import end_with_parent

T = TypeVar("T")
OF_LAUNCHER = ("RANK", "LOCAL_RANK")
"""What torchrun sets beside ``WORLD_SIZE``."""


class ProcessGroup(Strategy):
    """What DDP and FSDP have in common: the process group, small messages between the ranks, and who is still there.

    Small messages pass between CPUs (gloo), gradients between devices.

    Args:
        nproc_per_node: processes to start on this machine, by the program itself; None: torchrun starts them.
        gpus_per_job: GPUs that each job of a sweep gets, so that several run at once; None: one job has them all.

    Raises:
        UserError: there is no launcher, or it started another number of processes.
    """

    def __init__(self, *, nproc_per_node: int | None, gpus_per_job: int | None) -> None:
        for name, number in {"nproc_per_node": nproc_per_node, "gpus_per_job": gpus_per_job}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        self.world_size = started_processes()
        missing = [name for name in OF_LAUNCHER if not os.environ.get(name)]
        if self.world_size and missing:
            hint = f"torchrun sets {missing[0]} too: start it with torchrun, or unset WORLD_SIZE"
            raise UserError("no launcher started this process", key="WORLD_SIZE", value=self.world_size, hint=hint)
        if not self.world_size:
            raise UserError(
                "this strategy needs processes to be started",
                key="strategy",
                value=type(self).__name__.lower(),
                hint="add strategy.nproc_per_node=2, or start it with torchrun --nproc_per_node=2 -m tinyllm.train;"
                " in one process: strategy=auto",
            )
        self.rank, self.local_rank = rank(), int(os.environ["LOCAL_RANK"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        if nproc_per_node is not None and nproc_per_node != here:
            raise ValueError(f"nproc_per_node={nproc_per_node}, but torchrun started {here} processes here")
        self._heartbeat: Heartbeat | None = None

    def device(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {self.rank} has no GPU of its own",
                key="nproc_per_node",
                value=os.environ.get("LOCAL_WORLD_SIZE"),
                hint=f"at most {torch.cuda.device_count()} here, or trainer.device=cpu",
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def running(self, device: torch.device, *, backend: str, timeout_s: float) -> Iterator[None]:
        """Connect the ranks, and part in order.

        Raises:
            UserError: a backend that this machine does not have.
            RankError: ranks that do not come.
        """
        end_with_parent()  # so that no rank is left behind alone
        chosen = ("nccl" if device.type == "cuda" else "gloo") if backend == "auto" else backend
        if chosen == "nccl" and not (dist.is_nccl_available() and device.type == "cuda"):
            hint = "gloo, or auto: nccl passes messages between NVIDIA GPUs"
            raise UserError("backend not available here", key="distributed.backend", value=backend, hint=hint)
        both = f"cpu:gloo,cuda:{chosen}" if device.type == "cuda" else chosen
        try:
            dist.init_process_group(both, timeout=timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            hint = (
                f"{one_line(str(error))[:200]}; distributed.timeout_s={timeout_s:g} seconds passed, a host is away,"
                " or gloo does not know its network device: GLOO_SOCKET_IFNAME=<device>"
            )
            raise RankError("the ranks did not find each other", file=f"rank {self.rank}", hint=hint) from error
        self._heartbeat = Heartbeat(
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            rank=self.rank,
            world_size=self.world_size,
            generation="/".join(os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RUN_ID", "RESTART_COUNT")),
        )
        try:
            yield
            # In this order: a gloo group that ends with messages under way, or under a wrapper, aborts the process.
            gc.collect()
            dist.barrier()
        finally:
            self._heartbeat.close()
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def gather(self, values: Values) -> list[Values]:
        mine = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(every, mine)
        return [row.tolist() for row in every]

    def gather_objects(self, thing: Any) -> list[Any]:
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, thing)
        return found

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """What rank 0's ``action`` returns, on every rank.

        Raises:
            UserError: on every rank, if rank 0 raised it; only that one need be told.
        """
        error: Exception | None = None
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[1] = action()
            except Exception as raised:
                error, told[0] = raised, str(raised)
        dist.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        if told[0] is not None:
            raise UserError(told[0])
        result: T = told[1]
        return result

    def report_step(self, step: int) -> None:
        if self._heartbeat is not None:
            self._heartbeat.step = step

    def explained(self, error: Exception, step: int) -> Exception:
        """This rank's own error with its rank and step, or what is wrong with the rank that others wait for."""
        if self._heartbeat is None or isinstance(error, RankError):
            return error
        where = f"rank {self.rank}, step {step}"
        if is_of_connection(error):
            found = self._heartbeat.diagnosis() or one_line(str(error))
            hint = f"{found}; the last checkpoint is whole, resume from it"
            return RankError("a rank was lost", file=where, hint=hint)
        text = str(error) if isinstance(error, UserError) else one_line(f"{type(error).__name__}: {error}")
        self._heartbeat.tell(text)
        return RankError(text, file=where)


def is_of_connection(error: Exception) -> bool:
    """Whether an error comes from a message between ranks, and so from another one."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection", "timed out", "socket", "peer", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
