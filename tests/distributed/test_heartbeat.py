"""Which rank is reported as lost, and how errors are shown."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore

from tests.support.copies import HERE
from tinyllm.errors import RankError, UserError
from tinyllm.training.distributed import heartbeat
from tinyllm.training.distributed.ddp import DDP
from tinyllm.training.distributed.heartbeat import Heartbeat
from tinyllm.training.distributed.process_group import is_connection_error


class Three:
    """Heartbeats of three ranks, each with its own connection to one store."""

    def __init__(self) -> None:
        self.store: Any = TCPStore(HERE, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
        self.ranks = [
            Heartbeat(host=HERE, port=self.store.port, rank=rank, world_size=3, generation="test/0")
            for rank in range(3)
        ]
        self.at(7, 7, 7)

    def at(self, *steps: int) -> None:
        for rank, step in zip(self.ranks, steps, strict=True):
            rank.step = step
            rank._write()


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[Three]:
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.01)
    monkeypatch.setattr(heartbeat, "SILENT_AFTER_S", 0.3)
    ranks = Three()
    yield ranks
    for rank in ranks.ranks:
        rank.close()


def test_no_fault_is_reported_when_all_ranks_wait(three: Three) -> None:
    found: list[str] = []
    asking = [threading.Thread(target=lambda rank=rank: found.append(rank.diagnosis())) for rank in three.ranks]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert found == ["", "", ""]


def test_silent_ranks_are_named(three: Three) -> None:
    three.at(7, 6, 7)
    three.ranks[1].close()
    assert three.ranks[0].diagnosis() == "no heartbeat from rank 1 (last seen at step 6)"
    three.ranks[2].close()
    both = "no heartbeat from rank 1 (last seen at step 6), rank 2 (last seen at step 7)"
    assert three.ranks[0].diagnosis() == both


def test_a_rank_that_hangs_while_its_heartbeat_goes_on_is_named(three: Three) -> None:
    """A rank that is itself looking for the fault does not count as hanging."""
    three.at(7, 7, 3)
    asks = threading.Thread(target=three.ranks[1].diagnosis)
    asks.start()
    found = three.ranks[0].diagnosis()
    asks.join()
    assert found.startswith("rank 2 is alive but does not answer, at step 3 in ")
    assert found.endswith("(diagnosis)")  # where this process's main thread is


def test_a_reported_error_is_quoted(three: Three) -> None:
    three.ranks[1].report_error("ValueError: out of cheese")
    three.ranks[1].close()
    assert three.ranks[2].diagnosis() == "rank 1 failed: ValueError: out of cheese"


def test_heartbeats_of_another_start_are_ignored(three: Three) -> None:
    three.ranks[1].report_error("what happened before the restart")
    port = three.store.port
    again = [Heartbeat(host=HERE, port=port, rank=rank, world_size=3, generation="test/1") for rank in range(3)]
    assert "happened" not in again[0].diagnosis()
    for rank in again:
        rank.close()


def test_a_store_that_does_not_answer(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "ANSWER_WITHIN_S", 0.1)
    answer = threading.Event()
    monkeypatch.setattr(three.ranks[0], "_read", lambda name: answer.wait() and None)
    assert f"{HERE}:{three.store.port} does not answer" in three.ranks[0].diagnosis()
    answer.set()


def test_a_launcher_that_is_gone_is_named(three: Three) -> None:
    three.store = None
    assert "launcher" in three.ranks[0].diagnosis()


@pytest.fixture
def rank_1(three: Three, monkeypatch: pytest.MonkeyPatch) -> DDP:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    strategy = DDP(nproc_per_node=None, gpus_per_job=None)
    strategy._heartbeat = three.ranks[1]
    return strategy


def test_an_error_is_shown_with_rank_and_step_and_published(three: Three, rank_1: DDP) -> None:
    shown = rank_1.name_rank(ValueError("out of\ncheese"), step=7)
    assert isinstance(shown, RankError)
    assert str(shown) == "ValueError: out of cheese (rank 1, step 7)"
    assert three.ranks[0].diagnosis() == "rank 1 failed: ValueError: out of cheese"
    shown = rank_1.name_rank(UserError("not finite", key="trainer.nonfinite.action", value="stop"), step=7)
    assert str(shown) == "not finite (trainer.nonfinite.action=stop) (rank 1, step 7)"
    assert rank_1.name_rank(shown, step=7) is shown


def test_a_connection_error_is_explained_by_the_other_rank(three: Three, rank_1: DDP) -> None:
    three.ranks[0].close()
    shown = str(rank_1.name_rank(RuntimeError("Connection closed by peer [127.0.0.1]:44"), step=7))
    assert shown.startswith("a rank was lost (rank 1, step 7): no heartbeat from rank 0 (last seen at step 7); ")
    assert "resume" in shown


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:530] Connection closed by peer [10.0.0.1]:17"), True),
        (RuntimeError("Timed out waiting 10000ms for recv operation to complete"), True),
        (RuntimeError("NCCL error: unhandled system error"), True),
        (dist.DistBackendError("anything"), True),
        (dist.DistNetworkError("anything"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (ValueError("no connection to the matter"), False),
        (MemoryError(), False),
    ],
)
def test_connection_errors_are_recognized(error: Exception, expected: bool) -> None:
    assert is_connection_error(error) is expected
