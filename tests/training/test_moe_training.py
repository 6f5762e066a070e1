"""Training mixtures of experts: when and by which loads the bias moves, the metrics, and exact resuming."""

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import tinyllm
from tests.support.sources import ROOT
from tests.support.training_runs import SMALL, digest, logged, metrics, train
from tinyllm.data.batch import Batch
from tinyllm.programs.builders import build_model
from tinyllm.runs.checkpoint import find
from tinyllm.training.expert_load import ExpertLoad, StepLoad
from tinyllm.training.objectives.base import Loss
from tinyllm.training.objectives.next_token import NextToken

FREE = ("moe=aux_free", "model.block.moe.n_experts=6", "model.block.moe.gamma=0.01")
LOSS = ("moe=aux_loss", "model.block.moe.n_experts=6", "model.block.moe.coeff=0.1")


def small_model(*overrides: str) -> Any:
    sizes = [one for one in SMALL if one.startswith("model.")]
    cfg = tinyllm.compose(*sizes, *overrides)
    return build_model(cfg, vocab_size=20, seed=3, device=torch.device("cpu"), allow=frozenset())


def tokens(n: int = 12) -> torch.Tensor:
    return torch.randint(20, (n, 16), generator=torch.Generator().manual_seed(0))


def batch_of(ids: torch.Tensor) -> Batch:
    return Batch(inputs=ids, targets=ids)


def one_step(model: Any, micro_batches: list[torch.Tensor], *, n_sequences: int = 12) -> StepLoad:
    """The loop's handling of one step's loads, up to moving the biases."""
    objective, step_load = NextToken(model, chunk_tokens=0), StepLoad()
    for ids in micro_batches:
        loss = objective(batch_of(ids))
        fraction = len(ids) / n_sequences
        loss.share_of_step(weight=n_sequences * 16, fraction=fraction).backward()
        step_load.add(loss.expert_load, fraction=fraction)
    return step_load


def feed_forwards(model: Any) -> list[Any]:
    return [block.ffn for block in model.layers()]


def biases(model: Any) -> torch.Tensor:
    return torch.stack([ffn.bias_E for ffn in feed_forwards(model)])


def test_bias_and_gradient_of_micro_batches_are_those_of_one_batch() -> None:
    """The loads are summed before the bias moves; moving it for each micro-batch would give another result."""
    whole = small_model(*FREE, "model.block.moe.alpha=0.1")
    parts, apart = copy.deepcopy(whole), copy.deepcopy(whole)
    figures = []
    for model, sizes in ((whole, [12]), (parts, [2, 6, 4])):
        routing = one_step(model, list(tokens().split(sizes)))
        figures.append({name: float(value) for name, value in routing.metrics().items()})
        routing.balance(feed_forwards(model))
    assert biases(whole).any() and torch.equal(biases(whole), biases(parts))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-7, msg=name)
    for ids in tokens().split([2, 6, 4]):
        one_step(apart, [ids]).balance(feed_forwards(apart))
    assert not torch.equal(biases(apart), biases(whole))


def as_rank(rank: int, directory: Path) -> dict[str, Any]:
    """A step in one of two processes, with the sequences 0, 1 and 6 … 11, or 2 … 5."""
    dist.init_process_group("gloo", init_method=f"file://{directory / 'store'}", rank=rank, world_size=2)
    model = small_model(*FREE)
    mine = list(tokens().split([2, 4, 6]))[rank::2]
    routing = one_step(model, mine, n_sequences=sum(map(len, mine)))
    figures = {name: float(value) for name, value in routing.metrics().items()}
    routing.balance(feed_forwards(model))
    dist.destroy_process_group()
    return {"bias": biases(model), "figures": figures}


@pytest.mark.slow
def test_bias_of_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    code = f"import pathlib, torch; from {__name__} import as_rank; d = pathlib.Path({str(tmp_path)!r})"
    other = subprocess.Popen([sys.executable, "-c", f"{code}; torch.save(as_rank(1, d), d / 'one.pt')"], cwd=ROOT)
    ranks = [as_rank(0, tmp_path)]
    assert other.wait(timeout=60) == 0
    ranks.append(torch.load(tmp_path / "one.pt", weights_only=True))
    whole = small_model(*FREE)
    routing = one_step(whole, [tokens()])
    expected = {name: float(value) for name, value in routing.metrics().items()}
    routing.balance(feed_forwards(whole))
    assert ranks[0]["figures"] == ranks[1]["figures"]
    for one in ranks:
        assert torch.equal(one["bias"], biases(whole))
        for name in ("moe/max_load", "moe/load_entropy"):
            assert one["figures"][name] == pytest.approx(expected[name], rel=1e-5)


def test_recompute_moves_the_bias_once() -> None:
    plain = small_model(*FREE, "model.block.moe.alpha=0.1")
    recomputed = copy.deepcopy(plain)
    for block in recomputed.layers():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for model in (plain, recomputed):
        one_step(model, list(tokens().split(4))).balance(feed_forwards(model))
    assert biases(plain).any() and torch.equal(biases(plain), biases(recomputed))
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_balance_loss_is_averaged_over_mixtures_not_over_blocks() -> None:
    model = small_model(*LOSS, "model.n_layers=4")
    dense = small_model("model.n_layers=4")
    for depth in (0, 2):
        model.blocks[depth] = dense.blocks[depth]
    every = NextToken(model, chunk_tokens=0)(batch_of(tokens())).expert_load
    mixed = [routing.loss for routing in model.forward_with_routing(tokens())[1] if routing is not None]
    assert list(every.loads) == [1, 3] and len(mixed) == 2
    torch.testing.assert_close(every.balance_loss, (mixed[0] + mixed[1]) / 2)
    kept = NextToken(model, chunk_tokens=0)(batch_of(tokens()), [True, True, True, False]).expert_load
    assert list(kept.loads) == [1]
    torch.testing.assert_close(kept.balance_loss, mixed[0])
    assert NextToken(dense, chunk_tokens=0)(batch_of(tokens())).expert_load is None and StepLoad().metrics() == {}


def test_metrics_against_values_computed_by_hand() -> None:
    routing = StepLoad()
    load = torch.tensor([4.0, 0.0, 4.0, 0.0])
    for fraction in (0.25, 0.75):
        routing.add(ExpertLoad(torch.tensor(2.0), {1: load, 3: torch.ones(4)}), fraction=fraction)
    figures = {name: float(value) for name, value in routing.metrics().items()}
    assert figures == pytest.approx({"loss/balance": 2.0, "moe/max_load": (2 + 1) / 2, "moe/load_entropy": 0.75})


def run(path: Path, corpus: str, *overrides: str) -> Path:
    shared = ("dataset=text", corpus, *SMALL, "trainer.max_steps=4", "trainer.grad_accum_steps=2")
    assert train(*shared, f"run.dir={path}", *overrides) == 0
    return path


def bias_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in find(path).weights().items() if name.endswith("bias_E")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FREE, pytest.param(LOSS, marks=pytest.mark.slow)], ids=["aux_free", "aux_loss"])
def test_resume_is_bitwise_and_the_metrics_are_there(kind: tuple[str, ...], corpus: str, tmp_path: Path) -> None:
    options = (*kind, "model.dropout=0.1", "model.layerdrop=0.3")
    whole = run(tmp_path / "whole", corpus, *options)
    parts = run(tmp_path / "parts", corpus, *options, "trainer.stop_after_steps=2")
    assert train(f"resume={parts}") == 0
    assert digest(whole) == digest(parts) and metrics(whole) == metrics(parts)
    assert all(0 < value <= 1 for value in logged(whole, "moe/load_entropy"))
    assert all(value >= 1 for value in logged(whole, "moe/max_load"))
    assert len(logged(whole, "loss/balance")) == len(logged(whole, "moe/max_load")) == 4


def test_train_loss_is_plain_cross_entropy(corpus: str, tmp_path: Path) -> None:
    """The coefficient does not enter the first step's loss, but the weights after it."""
    small, large = (
        run(
            tmp_path / str(coeff),
            corpus,
            "moe=aux_loss",
            f"model.block.moe.coeff={coeff}",
            "trainer.stop_after_steps=2",
        )
        for coeff in (0.0, 50.0)
    )
    assert logged(small, "train/loss")[0] == logged(large, "train/loss")[0]
    assert logged(small, "loss/balance")[0] == 0 and logged(large, "loss/balance")[0] >= 49
    assert logged(small, "train/loss")[1] != logged(large, "train/loss")[1]


def test_a_skipped_step_leaves_the_bias(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(tmp_path / "before", corpus, *FREE, "trainer.stop_after_steps=2")
    moved = bias_of(before)
    assert moved and all(tensor.any() for tensor in moved.values())
    # of the next step alone: weights that no batch has a finite gradient for would not be saved
    monkeypatch.setattr(Loss, "share_of_step", _not_finite(Loss.share_of_step, times=2))
    assert train(f"resume={before}", "trainer.stop_after_steps=3") == 0
    assert find(before).step == 3 and find(before).state()["skipped"] == 1
    assert all(torch.equal(tensor, moved[name]) for name, tensor in bias_of(before).items())


def _not_finite(share_of_step: Callable[..., torch.Tensor], *, times: int) -> Callable[..., torch.Tensor]:
    factors = chain([float("nan")] * times, repeat(1.0))
    return lambda self, **keywords: share_of_step(self, **keywords) * next(factors)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        (("moe=aux_free",), 0.95, 1.0),
        (("moe=aux_loss",), 0.95, 1.0),
        (("moe=aux_loss", "model.block.moe.coeff=0"), 0.0, 0.9),
    ],
    ids=["aux_free", "aux_loss", "unbalanced"],
)
def test_a_real_run_stays_balanced_and_without_balancing_does_not(
    kind: tuple[str, ...], least: float, most: float, tmp_path: Path
) -> None:
    """nano on the code of the standard library; the mean over the second half of the run."""
    settings = ("dataset=stdlib", "trainer.max_steps=300", "trainer.batch_size=16", "optimizer.lr=1e-3")
    quiet = ("trainer.eval_every=0", "trainer.sample_every=0", "trainer.log_every=1")
    assert train(*kind, *settings, *quiet, f"run.dir={tmp_path / 'run'}") == 0
    later = logged(tmp_path / "run", "moe/load_entropy")[150:]
    assert least <= sum(later) / len(later) <= most
