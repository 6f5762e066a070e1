"""Ranks forked from this process, because that starts quickly; what torchrun adds is tested elsewhere."""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import TCPStore

from tests.support.elsewhere import Answer, Elsewhere
from tests.support.training_runs import SMALL, train
from tinyllm.config.cli import main as cli
from tinyllm.runs.checkpoint import find
from tinyllm.runs.state_diff import contents

HERE = "127.0.0.1"
STEPS = 20
SHARED = (*SMALL, "dataset=text", f"trainer.max_steps={STEPS}", "trainer.eval_every=10", "trainer.eval_tokens=200")


class Rank(Elsewhere):
    """One of several ranks that train, and the store that it meets the others in."""

    def __init__(
        self, rank: int, meeting: TCPStore, world_size: int, *overrides: str, fault: str, first: Callable[[], object]
    ) -> None:
        self.meeting = meeting
        told = {
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(world_size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            "MASTER_ADDR": HERE,
            "MASTER_PORT": str(meeting.port),
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

        def begin() -> None:
            os.environ.update(told)
            cli.OTHERS_WAIT_S = 0.0  # nobody ends them meanwhile
            first()

        super().__init__(*overrides, fault=fault, first=begin)


def start(
    world_size: int,
    *overrides: str,
    fault: str = "",
    first: Callable[[], object] = lambda: None,
    last_rank: tuple[str, ...] = (),
) -> list[Rank]:
    """Start the ranks of a training.

    Args:
        first: called in each of them before it.
        last_rank: overrides that the last of them gets besides.
    """
    import torch._dynamo  # here once, so that the copies need not
    import torch.distributed.fsdp  # noqa: F401

    meeting = TCPStore(HERE, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    given = [overrides] * (world_size - 1) + [(*overrides, *last_rank)]
    gc.freeze()  # a copy that looks through everything it was given copies all of that memory
    try:
        return [Rank(rank, meeting, world_size, *own, fault=fault, first=first) for rank, own in enumerate(given)]
    finally:
        gc.unfreeze()


def train_ranks(world_size: int, *overrides: str, **named: Any) -> list[Answer]:
    """Train with several ranks, to their end; see :func:`start`."""
    return [rank.answer() for rank in start(world_size, *overrides, **named)]


def run(world_size: int, place: Path, *overrides: str, first: Callable[[], object] = lambda: None) -> Path:
    """Train into ``place`` with as many ranks as are asked for; nothing but rank 0 may have said a word."""
    if world_size == 1:
        assert train(*overrides, f"run.dir={place}") == 0
        return place
    answers = train_ranks(world_size, *overrides, f"run.dir={place}", first=first)
    assert [answer.code for answer in answers] == [0] * world_size, answers
    assert not any(answer.out + answer.err for answer in answers[1:])
    return place


def tensors(place: Path) -> dict[str, Tensor]:
    """What a run's last checkpoint has of weights, optimizer, average, scaler and counters; not what depends on the
    ranks: their random streams, and the sum of the losses since the last record, which is taken in another order."""
    found = contents(find(place))
    return {name: value for name, value in found.items() if name.split("/")[0] not in ("rng", "window")}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of two runs' tensors; they must have the same names."""
    assert one.keys() == other.keys()
    pairs = [(one[name], other[name]) for name in one if isinstance(one[name], Tensor)]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.is_floating_point())
