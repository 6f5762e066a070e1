"""``strategy=auto``: as many processes as the launcher started."""

from tinyllm.training.distributed.ddp import DDP
from tinyllm.training.distributed.strategy import SingleProcess, Strategy
from tinyllm.utils.environment import started_processes


def auto() -> Strategy:
    """One process, or DDP under torchrun with several."""
    return DDP(nproc_per_node=None, gpus_per_job=None) if started_processes() > 1 else SingleProcess()
