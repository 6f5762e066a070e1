"""Training on generated sequences: loss, accuracy, and what determines a result."""

import copy
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import tinyllm
from tests.studies.probes.test_tasks import COPYING, INDUCTION, RECALL
from tinyllm.programs.builders import build_model
from tinyllm.studies.probes.probing import make_trainer, measure
from tinyllm.studies.probes.results import Probe, ResultCache, Score, fingerprint, score
from tinyllm.studies.probes.stream import batches_to_test, batches_to_train, correct_shares
from tinyllm.studies.probes.task import Task
from tinyllm.studies.probes.trials import Trials, settings_of
from tinyllm.utils.device import autocast

CPU = torch.device("cpu")
TINY = (
    *("model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_ff=32", "trainer.max_steps=2"),
    *("trainer.batch_size=4", "trainer.precision=fp32", "examples=8", "tasks=[recall,length]"),
)


@cache
def tiny(*more: str) -> DictConfig:
    return tinyllm.compose(*TINY, *more, program="probe")


def trials(*more: str) -> Trials:
    return Trials(copy.deepcopy(tiny(*more)), typed=frozenset(), allow=frozenset())


def measured(*more: str) -> list[Probe]:
    """Results without a cache."""
    ours = trials(*more)
    return [
        measure(ours.configurations[name], name, task, seed=seed, allow=frozenset())
        for name, task in ours.tasks.items()
        for seed in ours.seeds
    ]


class Oracle(torch.nn.Module):
    """A model that answers by a function of the sequence; its hidden states are its logits."""

    def __init__(self, answer: Callable[[Tensor], Tensor], vocab_size: int) -> None:
        super().__init__()
        self.answer, self.vocab_size = answer, vocab_size

    def forward(self, ids_BT: Tensor) -> Tensor:
        assert not self.training
        answers = torch.stack([self.answer(row) for row in ids_BT])
        return F.one_hot(answers, self.vocab_size).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def recalled(row: Tensor) -> Tensor:
    pairs = dict(row[:8].reshape(4, 2).tolist())
    return torch.tensor([pairs.get(token, 0) for token in row.tolist()])


def copied(row: Tensor) -> Tensor:
    return torch.cat([row[:14] * 0, row[row < 8]])


def induced(row: Tensor) -> Tensor:
    after = dict(zip(row[:8].tolist(), row[1:9].tolist(), strict=True))
    return torch.tensor([after.get(token, 0) for token in row.tolist()])


@pytest.mark.parametrize(
    ("task", "answer", "accuracy"),
    [
        (RECALL, recalled, 1.0),
        (COPYING, copied, 1.0),
        (INDUCTION, induced, 1.0),
        (RECALL, lambda row: row[1].expand(len(row)), RECALL.chance),
        (COPYING, lambda row: row[row < 8][2].expand(len(row)), COPYING.chance),
        (COPYING, lambda row: torch.full_like(row, 9), 0.0),
    ],
    ids=["recall", "copying", "induction", "recall by chance", "copying by chance", "always wrong"],
)
def test_accuracy_of_an_oracle_and_of_guessing(task: Task, answer: Callable[[Tensor], Tensor], accuracy: float) -> None:
    oracle = Oracle(answer, task.vocab_size)
    batches = batches_to_test(task, seed=3, examples=50, batch_size=16)
    shares = correct_shares(oracle, batches, device=CPU, autocast=partial(autocast, CPU, "fp32"))
    assert oracle.training, "its mode is restored"
    assert len(shares) == 50
    assert math.fsum(shares) / 50 == pytest.approx(accuracy)


def test_interval_is_wilsons_with_one_trial_per_sequence() -> None:
    shares, z, n = [1.0] * 60 + [0.5] * 40, 1.959963984540054, 100
    got = score(shares, chance=0.125, questions=2)
    assert (got.accuracy, got.chance, got.sequences, got.questions) == (0.8, 0.125, 100, 200)
    middle = (0.8 + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(0.8 * 0.2 / n + z**2 / (4 * n**2))
    assert (got.low, got.high) == pytest.approx((middle - half, middle + half))
    sure = score([1.0] * 100, chance=0.5, questions=1)
    assert (sure.low, sure.high) == (pytest.approx(n / (n + z**2)), 1.0)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_loss_is_the_mean_over_the_questions(accumulated: int) -> None:
    cfg = OmegaConf.merge(tiny(), {"trainer": {"batch_size": 6 // accumulated, "grad_accum_steps": accumulated}})
    task = trials().tasks["recall"]
    trainer = make_trainer(cfg, task, seed=5, device=CPU, allow=frozenset())
    model = build_model(cfg, vocab_size=task.vocab_size, seed=5, device=CPU, allow=frozenset())
    batches = batches_to_train(task, seed=5, start_step=0, batch_size=6, grad_accum_steps=1)
    batch = next(batches)
    logits = model.logits(model(batch.inputs))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    trainer.train_step(trainer.batches())
    assert trainer.state.window["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_probes_are_reproducible_and_seeds_differ(tmp_path: Path) -> None:
    def plain(probes: list[Probe]) -> list[object]:
        return [(probe.task, probe.seed, probe.scores, probe.steps, probe.parameters) for probe in probes]

    once, again = measured("seeds=2"), [result for result, _ in trials("seeds=2").run(ResultCache(tmp_path))]
    assert plain(once) == plain(again)
    assert [(probe.task, probe.seed) for probe in once] == [
        (task, seed) for task in ("recall", "length") for seed in (1337, 1338)
    ]
    assert [list(probe.scores) for probe in once[::2]] == [["recall"], ["length@1x", "length@2x", "length@4x"]]
    chances = [score.chance for score in once[2].scores.values()]
    assert chances == [1 / 5, 1 / 13, 1 / 29]
    assert len({probe.parameters for probe in once}) == 1, "embeddings are not counted"


def test_context_is_that_of_the_task_unless_typed() -> None:
    ours = trials()
    assert {name: cfg.model.max_seq_len for name, cfg in ours.configurations.items()} == {"recall": 24, "length": 112}
    assert tiny().model.max_seq_len == 128
    cfg = copy.deepcopy(tiny())
    cfg.model.max_seq_len = 200
    wide = Trials(cfg, typed=frozenset({"model.max_seq_len"}), allow=frozenset())
    assert {cfg.model.max_seq_len for cfg in wide.configurations.values()} == {200}
    cfg.model.max_seq_len = 111
    said = r"\(model.max_seq_len=111\): tasks.length needs sequences of 112 tokens"
    with pytest.raises(tinyllm.errors.UserError, match=said):
        Trials(cfg, typed=frozenset({"model.max_seq_len"}), allow=frozenset())


def test_cached_results_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResultCache(tmp_path)
    first = list(trials().run(cache))
    assert [cached for _, cached in first] == [False, False]
    with monkeypatch.context() as context:
        context.delattr("tinyllm.studies.probes.trials.measure")
        second = list(trials().run(cache))
    assert [cached for _, cached in second] == [True, True]
    assert [probe for probe, _ in first] == [probe for probe, _ in second]
    [file] = tmp_path.glob("recall_*.json")
    file.write_text(file.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert [cached for _, cached in trials().run(cache)] == [False, True], "a truncated file is ignored"
    longer = trials("tasks.recall.length=50", "tasks.length.factors=[1,2,4]")
    assert [cached for _, cached in longer.run(cache)] == [False, True]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.n_layers", 2),
        ("optimizer.lr", 1e-2),
        ("trainer.max_steps", 3),
        ("trainer.precision", "bf16"),
        ("examples", 9),
        ("objective.z_loss", 0.1),
        ("tasks.recall.fillers", 3),
    ],
)
def test_fingerprint_depends_on_every_setting(key: str, value: object) -> None:
    changed = copy.deepcopy(tiny())
    OmegaConf.update(changed, key, value)
    assert fingerprint(settings_of(changed, "recall", 0)) != fingerprint(settings_of(tiny(), "recall", 0))
    unread = copy.deepcopy(tiny())
    unread.trainer.log_every, unread.out = 77, "elsewhere"
    assert fingerprint(settings_of(unread, "recall", 0)) == fingerprint(settings_of(tiny(), "recall", 0))


def test_fingerprint_depends_on_foreign_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("a = 1\n")
    before = fingerprint({}, extra=[file])
    assert before == fingerprint({}, extra=[file]) != fingerprint({})
    file.write_text("a = 2\n")
    assert fingerprint({}, extra=[file]) != before


def test_result_survives_the_round_trip_to_disk(tmp_path: Path) -> None:
    score = Score(accuracy=1 / 3, low=0.1, high=0.7, chance=0.125, sequences=3, questions=6)
    probe = Probe(task="recall", seed=4, scores={"recall": score}, steps=9, parameters=8, seconds=0.7)
    cache = ResultCache(tmp_path / "new" / "place")
    cache.put(probe, {"a": 1}, "f" * 64)
    assert cache.find("recall", 4, "f" * 64) == probe
    assert cache.find("recall", 4, "f" * 63 + "e") is None, "the whole fingerprint counts"
    assert cache.find("recall", 5, "f" * 64) is None
