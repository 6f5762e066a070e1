"""The loop trains any objective on any source of windows, here a preference loss on pairs of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig

import tinyllm
from tests.support.training_runs import SMALL
from tinyllm.data.batch import Batch, WindowSource
from tinyllm.data.loader import train_batches
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.builders import build_model, build_optimizer
from tinyllm.runs.metrics_log import Log, Record
from tinyllm.training.batch_plan import BatchPlan
from tinyllm.training.callbacks import Callback
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.objectives.base import Loss, Objective
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.state import TrainState
from tinyllm.training.trainer import Settings, Trainer
from tinyllm.utils.device import autocast
from tinyllm.utils.stop_signal import StopRequest

CPU = torch.device("cpu")
LENGTHS = Lengths(seq_len=16, start=8, steps=2)
PLAN = BatchPlan(batch_size=3, grad_accum_steps=2, seq_len=16, world_size=1)


@cache
def composed(*settings: str) -> DictConfig:
    return tinyllm.compose(*(setting for setting in SMALL if setting.startswith("model.")), *settings)


def small_model(*settings: str) -> Any:
    return build_model(composed(*settings), vocab_size=20, seed=0, device=CPU, allow=frozenset())


class Pairs:
    """Sequences of two equal documents, each with a rejected sequence and a reward."""

    windows_per_epoch = 7

    def batch(self, samples: np.ndarray) -> Batch:
        rows = [np.random.default_rng(number % self.windows_per_epoch).integers(0, 20, 8) for number in samples]
        inputs = torch.from_numpy(np.concatenate([rows, rows], axis=1))
        targets = inputs.roll(-1, dims=1)
        targets[:, -1] = IGNORE
        doc_ids = torch.arange(2).repeat_interleave(8).repeat(len(samples), 1)
        return Batch(
            inputs=inputs,
            targets=targets,
            doc_ids=doc_ids,
            extra={"rejected": (inputs + 1) % 20, "reward": torch.from_numpy(samples % 3).float()},
        )


class Preference(Objective):
    """Makes the chosen sequence likelier than the rejected one (as Rafailov et al. 2023, but without a reference)."""

    selects = "pairs/accuracy"
    lower_is_better = False

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.seen: list[Batch] = []

    def weight(self, batch: Batch) -> int:
        return batch.sequences

    def forward(self, batch: Batch, active_blocks: Sequence[bool] | None = None) -> Loss:
        self.seen.append(batch)
        margins_B = self.log_likelihood(batch.inputs) - self.log_likelihood(batch.extra["rejected"])
        losses_B = -F.logsigmoid(margins_B) * (1 + batch.extra["reward"])
        metrics = {"train/loss": losses_B.sum(), "pairs/margin": margins_B.sum()}
        return Loss(losses_B.sum(), metrics)

    def log_likelihood(self, ids_BT: torch.Tensor) -> torch.Tensor:
        scores_BTV = self.model.logits(self.model(ids_BT))[:, :-1].log_softmax(-1)
        return scores_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2).mean(1)


class Records(Log):
    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Any) -> None:
        self.records.append(record)


@dataclass
class Saved(NoCheckpoints):
    best: list[bool] = field(default_factory=list)

    def save(self, *, best: bool, reason: str, is_final: bool) -> None:
        self.best.append(best)


def trained(source: WindowSource, accuracies: Sequence[float]) -> Trainer:
    """Train one step per accuracy, with an evaluation after each that reports it."""
    model = small_model()
    state = TrainState(
        model=model,
        optimizer=build_optimizer(composed(), model, allow=frozenset())[0],
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    objective, left = Preference(model), iter(accuracies)
    trainer = Trainer(
        state=state,
        objective=objective,
        forward=objective,
        lr_at=lambda step: 0.01,
        settings=Settings(
            seed=0, max_steps=len(accuracies), max_minutes=None, stop_after_steps=None, grad_clip=1.0, log_every=1,
            eval_every=1, sample_every=0, checkpoint_every=0, nonfinite_action="stop", nonfinite_patience=1,
        ),
        batch_plan=PLAN,
        lengths=LENGTHS,
        autocast=partial(autocast, CPU, "fp32"),
        batches=partial(
            train_batches, source, start_step=0, end_step=len(accuracies), batch_size=3, grad_accum_steps=2,
            length_at=LENGTHS.at,
        ),
        evaluate=lambda stopping: {"val/loss": 1.0, "pairs/accuracy": next(left)},
        sample=lambda step, stopping: "",
        checkpoints=Saved(),
        log=Records(),
        events=Callback(),
        stop=StopRequest(),
        warm_up=lambda: None,
        profiler=NoProfiler(),
        peak_flops=None,
        run_dir=Path(),
    )  # fmt: skip
    assert trainer.fit().status == "finished"
    return trainer


def test_another_objective_on_another_source_trains_with_its_own_metrics() -> None:
    trainer = trained(Pairs(), [0.5, 0.75, 0.25, 0.75])
    assert isinstance(trainer.log, Records) and isinstance(trainer.checkpoints, Saved)
    losses = [record["train/loss"] for record in trainer.log.records]
    margins = [record["pairs/margin"] for record in trainer.log.records]
    assert losses[-1] < losses[0] and margins[-1] > margins[0]
    assert "loss/z" not in trainer.log.records[0] and "moe/max_load" not in trainer.log.records[0]
    # Higher is better, and an equal value later is not.
    assert trainer.checkpoints.best == [True, True, False]
    assert (trainer.state.best_loss, trainer.state.best_step) == (0.75, 2)


def test_the_objective_is_given_the_batches_of_the_source_as_long_as_the_step() -> None:
    trainer, source = trained(Pairs(), [0.5] * 4), Pairs()
    assert isinstance(trainer.objective, Preference)
    assert [LENGTHS.at(step) for step in range(4)] == [8, 8, 16, 16]
    for micro, batch in enumerate(trainer.objective.seen):
        expected, length = source.batch(np.arange(3 * micro, 3 * micro + 3)), LENGTHS.at(micro // 2)
        assert batch.doc_ids is not None and expected.doc_ids is not None
        for found, whole in (
            (batch.inputs, expected.inputs),
            (batch.targets, expected.targets),
            (batch.doc_ids, expected.doc_ids),
            (batch.extra["rejected"], expected.extra["rejected"]),
        ):
            assert found.is_contiguous() and torch.equal(found, whole[:, :length])
        assert torch.equal(batch.extra["reward"], expected.extra["reward"])
    assert len(trainer.objective.seen) == 8 and trainer.state.sequences == 24


def test_the_first_loss_is_the_mean_over_what_the_objective_weighs_by() -> None:
    trainer = trained(Pairs(), [0.5])
    fresh = Preference(small_model())
    whole = fresh(Pairs().batch(np.arange(6)).shortened(8))
    assert isinstance(trainer.log, Records)
    assert trainer.log.records[0]["train/loss"] == pytest.approx(float(whole.total.detach()) / 6, rel=1e-5)


def test_next_token_keeps_attention_within_the_documents_of_a_batch() -> None:
    """A row of two documents has the same loss as the documents in separate rows."""
    batch = Pairs().batch(np.arange(4))
    objective = NextToken(small_model("model.document_mask=true"))
    packed = objective(batch).total
    apart = Batch(inputs=batch.inputs.reshape(8, 8), targets=batch.targets.reshape(8, 8))
    torch.testing.assert_close(packed, objective(apart).total)
    assert not torch.isclose(packed, objective(Batch(inputs=batch.inputs, targets=batch.targets)).total)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_workers_carry_every_tensor_of_a_batch(workers: int) -> None:
    [batch] = train_batches(Pairs(), start_step=2, end_step=3, batch_size=4, workers=workers)
    expected = Pairs().batch(np.arange(8, 12))
    assert torch.equal(batch.inputs, expected.inputs) and torch.equal(batch.targets, expected.targets)
    assert batch.doc_ids is not None and expected.doc_ids is not None and torch.equal(batch.doc_ids, expected.doc_ids)
    assert batch.extra.keys() == expected.extra.keys()
    assert batch.counted == 4 * 15 and batch.sequences == 4
