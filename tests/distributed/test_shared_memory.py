"""Sums through shared memory, against sums that are added in the order of the ranks."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tinyllm.training.distributed.shared_memory import MAX_RANKS, SharedSum

SIZES = (3, 1000, 7, 4000, 4000, 1)
"""Sizes that grow and shrink: memory is mapped anew, and both slots are used again."""


def values(rank: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(100 * size + rank))


def gathered(thing: Any) -> list[Any]:
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, thing)
    return objects


def rank_sums(rank: int, world_size: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    shared = SharedSum.where_possible(torch.device("cpu"), rank=rank, world_size=world_size, gather_objects=gathered)
    assert shared is not None
    sums = []
    for size in SIZES:
        tensor = values(rank, size)
        shared(tensor)
        sums.append(tensor)
    torch.save(sums, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no anonymous files")
def test_every_rank_gets_the_sum_in_the_order_of_the_ranks(world_size: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("spawn").Process
    ranks = [start(target=rank_sums, args=(rank, world_size, port, str(tmp_path))) for rank in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    expected = []
    for size in SIZES:
        total = values(0, size)
        for rank in range(1, world_size):
            total = total + values(rank, size)
        expected.append(total)
    for rank in range(world_size):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("device", "world_size", "local"), [("meta", 2, "2"), ("cpu", 2, "1"), ("cpu", 1, "1"), ("cpu", MAX_RANKS + 1, "5")]
)
def test_other_ranks_use_the_process_group(
    device: str, world_size: int, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators, several machines, one rank, many ranks."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    found = SharedSum.where_possible(
        torch.device(device), rank=0, world_size=world_size, gather_objects=lambda thing: [thing]
    )
    assert found is None


def test_memory_that_one_rank_cannot_map_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def gather(thing: Any) -> list[Any]:
        return [thing, "/proc/0/fd/none"] if isinstance(thing, str) else [thing, True]

    assert SharedSum.where_possible(torch.device("cpu"), rank=0, world_size=2, gather_objects=gather) is None
