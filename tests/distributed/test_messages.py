"""Ranks exchange each gradient once per step, and draw different dropout masks."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.support.copies import SHARED, run
from tinyllm.runs.state_diff import digest
from tinyllm.training.distributed import ddp
from tinyllm.training.trainer import Trainer

N_LAYERS, STEPS = 2, 4
SCATTER = next(name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name))
"""torch 2.13 has another name for it."""
OPTIONS = ("trainer.grad_accum_steps=3", "model.dropout=0.2", f"trainer.max_steps={STEPS}")


def recording(folder: Path) -> None:
    """In a rank: record the gradient messages of each step, the dropout masks, and the final weights."""
    sent: list[list[int]] = []
    masks: list[str] = []
    weights: list[str] = []
    in_step, fit, dropout = Trainer.train_step, Trainer.fit, F.dropout
    sum_bucket, reduce_scatter = ddp._sum, getattr(dist, SCATTER)

    def train_step(self: Trainer, batches: Iterator[Any]) -> dict[str, float]:
        sent.append([])
        return in_step(self, batches)

    def counted_sum(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent[-1].append(bucket.buffer().numel())
        return sum_bucket(state, bucket)

    def counted_scatter(*given: Any, **named: Any) -> Any:
        sent[-1].append((named["input"] if "input" in named else given[1]).numel())
        return reduce_scatter(*given, **named)

    def seen_dropout(x: Tensor, p: float, training: bool) -> Tensor:
        dropped = dropout(x, p, training)
        if training and sent:
            masks.append(digest({"mask": dropped == 0}))
        return dropped

    def trained(self: Trainer) -> Any:
        outcome = fit(self)
        weights.append(digest({k: self.strategy.full_tensor(v) for k, v in self.state.model.state_dict().items()}))
        found = {"sent": sent, "masks": masks, "weights": weights}
        (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
        return outcome

    Trainer.train_step, Trainer.fit = train_step, trained  # type: ignore[method-assign]
    ddp._sum, F.dropout = counted_sum, seen_dropout  # type: ignore[assignment]
    setattr(dist, SCATTER, counted_scatter)


def told(corpus: str, place: Path, *options: str, first: Callable[[], object]) -> list[dict[str, Any]]:
    """The records of two ranks."""
    run(2, place / "run", *SHARED, corpus, *OPTIONS, *options, first=first)
    return [json.loads((place / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def check_the_rest(ranks: list[dict[str, Any]]) -> None:
    """Masks differ between ranks and micro-steps; weights are equal."""
    masks = [set(rank["masks"]) for rank in ranks]
    assert not masks[0] & masks[1]
    assert len(masks[0]) == len(masks[1]) == STEPS * 3 * (1 + 2 * N_LAYERS)
    assert ranks[0]["weights"] == ranks[1]["weights"]


def n_parameters(place: Path) -> int:
    status = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    return int(status["info"]["parameters"])


@pytest.mark.slow
def test_ddp_sends_each_gradient_once_per_step(corpus: str, tmp_path: Path) -> None:
    def begin() -> None:
        recording(tmp_path)
        ddp.DistributedDataParallel = partial(ddp.DistributedDataParallel, bucket_cap_mb=0.02)  # type: ignore[misc]

    ranks = told(corpus, tmp_path, first=begin)
    for rank in ranks:
        assert len(rank["sent"]) == STEPS
        assert [sum(step) for step in rank["sent"]] == [n_parameters(tmp_path)] * STEPS
        assert len({len(step) for step in rank["sent"][1:]}) == 1 < len(rank["sent"][1])
    check_the_rest(ranks)


@pytest.mark.slow
def test_fsdp_sends_each_block_in_one_message(corpus: str, tmp_path: Path) -> None:
    """And the parameters outside the blocks in another."""
    ranks = told(corpus, tmp_path, "strategy=fsdp", first=partial(recording, tmp_path))
    for rank in ranks:
        assert [len(step) for step in rank["sent"]] == [N_LAYERS + 1] * STEPS
        assert all(n_parameters(tmp_path) <= sum(step) < 1.01 * n_parameters(tmp_path) for step in rank["sent"])
    check_the_rest(ranks)
