"""Process group: ranks that torchrun started, connected by torch.distributed."""

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
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK")
"""Environment variables that torchrun sets besides ``WORLD_SIZE``."""


class ProcessGroup(Strategy):
    """Base of DDP and FSDP: the process group, small messages between the ranks, and their heartbeats.

    Small messages go between CPUs (gloo), gradients between devices.

    Args:
        nproc_per_node: processes for the command to start on this machine; None: they are started by torchrun.
        gpus_per_job: GPUs per job of a sweep, so that several jobs run at once; None: each job uses all GPUs.

    Raises:
        UserError: no launcher started this process.
        ValueError: the launcher started a different number of processes, or a number is not positive.
    """

    def __init__(self, *, nproc_per_node: int | None, gpus_per_job: int | None) -> None:
        for name, number in {"nproc_per_node": nproc_per_node, "gpus_per_job": gpus_per_job}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        self.world_size = started_processes()
        missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name)]
        if self.world_size and missing:
            hint = (
                f"{missing[0]} is not set, which torchrun would set as well: start with torchrun, or unset WORLD_SIZE"
            )
            raise UserError("no launcher started this process", key="WORLD_SIZE", value=self.world_size, hint=hint)
        if not self.world_size:
            raise UserError(
                "this strategy needs several processes",
                key="strategy",
                value=type(self).__name__.lower(),
                hint="add strategy.nproc_per_node=2, or start with torchrun --nproc_per_node=2 -m tinyllm.train;"
                " for one process: strategy=auto",
            )
        self.rank, self.local_rank = rank(), int(os.environ["LOCAL_RANK"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        if nproc_per_node is not None and nproc_per_node != local_size:
            raise ValueError(f"nproc_per_node={nproc_per_node}, but torchrun started {local_size} processes here")
        self._heartbeat: Heartbeat | None = None

    def device(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {self.rank} has no GPU of its own",
                key="strategy.nproc_per_node",
                value=os.environ.get("LOCAL_WORLD_SIZE"),
                hint=f"at most {torch.cuda.device_count()} on this machine, or set trainer.device=cpu",
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def running(self, device: torch.device, *, backend: str, timeout_s: float) -> Iterator[None]:
        """Connect the ranks, and disconnect them in order.

        Raises:
            UserError: the backend is not available on this machine.
            RankError: the ranks did not all connect in time.
        """
        end_with_parent()  # no rank survives its launcher
        chosen = ("nccl" if device.type == "cuda" else "gloo") if backend == "auto" else backend
        if chosen == "nccl" and not (dist.is_nccl_available() and device.type == "cuda"):
            hint = "use gloo or auto; nccl connects NVIDIA GPUs only"
            raise UserError(
                "backend not available on this machine", key="distributed.backend", value=backend, hint=hint
            )
        both = f"cpu:gloo,cuda:{chosen}" if device.type == "cuda" else chosen
        try:
            dist.init_process_group(both, timeout=timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            hint = (
                f"{one_line(str(error))[:200]}; possible causes: the timeout passed"
                f" (distributed.timeout_s={timeout_s:g} seconds), a host is down, or gloo chose the wrong network"
                " device (set GLOO_SOCKET_IFNAME=<device>)"
            )
            raise RankError("the ranks could not connect", file=f"rank {self.rank}", hint=hint) from error
        self._heartbeat = Heartbeat(
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            rank=self.rank,
            world_size=self.world_size,
            generation="/".join(os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RUN_ID", "RESTART_COUNT")),
        )
        try:
            yield
            # Order matters: destroying a gloo group with messages in flight, or still used by DDP, aborts the process.
            gc.collect()
            dist.barrier()
        finally:
            self._heartbeat.close()
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def gather(self, values: Values) -> list[Values]:
        own = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(rows, own)
        return [row.tolist() for row in rows]

    def gather_objects(self, thing: Any) -> list[Any]:
        objects: list[Any] = [None] * self.world_size
        dist.all_gather_object(objects, thing)
        return objects

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0 and broadcast its result.

        Raises:
            UserError: on ranks above 0, if the action raised on rank 0; rank 0 raises the original error.
        """
        error: Exception | None = None
        message: list[Any] = [None, None]  # error text and result
        if self.rank == 0:
            try:
                message[1] = action()
            except Exception as raised:
                error, message[0] = raised, str(raised)
        dist.broadcast_object_list(message, src=0)
        if error is not None:
            raise error
        if message[0] is not None:
            raise UserError(message[0])
        result: T = message[1]
        return result

    def report_step(self, step: int) -> None:
        if self._heartbeat is not None:
            self._heartbeat.step = step

    def name_rank(self, error: Exception, step: int) -> Exception:
        """This rank's own error with rank and step; for a broken connection, which rank failed and how."""
        if self._heartbeat is None or isinstance(error, RankError):
            return error
        where = f"rank {self.rank}, step {step}"
        if is_connection_error(error):
            diagnosis = self._heartbeat.diagnosis() or one_line(str(error))
            hint = f"{diagnosis}; the last checkpoint is intact, resume from it"
            return RankError("a rank was lost", file=where, hint=hint)
        text = str(error) if isinstance(error, UserError) else one_line(f"{type(error).__name__}: {error}")
        self._heartbeat.report_error(text)
        return RankError(text, file=where)


def is_connection_error(error: Exception) -> bool:
    """Whether an error comes from communication between ranks, so that its cause lies in a different rank."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection", "timed out", "socket", "peer", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
