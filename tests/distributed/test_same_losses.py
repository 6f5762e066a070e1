"""The same batch on 1, 2 or 4 ranks, with DDP or FSDP, gives the same training."""

from pathlib import Path

import pytest
import torch

import tinyllm
from tests.support.copies import SHARED, STEPS, largest_difference, run, tensors
from tests.support.training_runs import logged, metrics, train
from tinyllm.models.layerdrop import draw_active_blocks
from tinyllm.runs.state_diff import digest
from tinyllm.utils.seeds import derive_seed

EMA = ("ema.enabled=true", "ema.decay=0.9")
MIXTURE = ("model.block.moe.n_experts=4", "model.block.moe.n_active=2")
PLAIN = (*EMA, "trainer.grad_clip=0.5", "trainer.activation_checkpointing=true")
FEATURES: dict[str, tuple[tuple[str, ...], float]] = {
    "muon, balance loss, recompute": (
        (*PLAIN, "optimizer=muon", "moe=aux_loss", *MIXTURE, "objective.z_loss=1e-3", "objective.label_smoothing=0.1",
         "parametrization=mup", "model.parametrization.base_width=16"),
        1e-4,  # it makes matrices orthogonal in bf16
    ),
    "lion, balance by bias, untied": (
        ("optimizer=lion", "optimizer.lr=3e-4", "moe=aux_free", *MIXTURE, "model.block.moe.gamma=0.01",
         "model.tie_embeddings=false", "parametrization=mup"),
        1e-5,
    ),
    "bf16, learned positions, layernorm": (
        ("trainer.precision=bf16", "pos=learned", "norm=layernorm", "model.bias=true"),
        2e-3,  # in parts, tables and norms are gathered in bf16 too
    ),
    "fp16 with scaler": (("trainer.precision=fp16",), 1e-4),
}  # fmt: skip
"""Options, and the tolerance of the FSDP loss against one rank."""
EXACT = ("moe/", "train/grad_norm", "train/lr", "val/", "step", "tokens", "flops")
"""Metrics that are summed in the same order wherever they are; the loss is summed in double over the ranks."""


def losses(place: Path) -> list[float]:
    """Of training and evaluation."""
    return logged(place, "train/loss") + logged(place, "val/loss")


def same_bits(one: Path, other: Path) -> None:
    """Whether two runs have equal weights, states and metrics."""
    assert digest(tensors(one)) == digest(tensors(other))
    exactly = [
        [{k: v for k, v in record.items() if k.startswith(EXACT)} for record in metrics(place)]
        for place in (one, other)
    ]
    assert exactly[0] == exactly[1]
    assert losses(one) == pytest.approx(losses(other), rel=2e-7)


@pytest.mark.slow
def test_two_ranks_are_bitwise_equal_to_one_process_that_accumulates(corpus: str, tmp_path: Path) -> None:
    one = run(1, tmp_path / "one", *SHARED, corpus, *PLAIN, "trainer.grad_accum_steps=2")
    two = run(2, tmp_path / "two", *SHARED, corpus, *PLAIN)
    same_bits(one, two)
    assert len(logged(two, "train/loss")) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "apart"),
    [
        pytest.param(*of, id=name, marks=[pytest.mark.exhaustive] * (place % 2))
        for place, (name, of) in enumerate(FEATURES.items())
    ],
)
def test_two_ranks_with_other_features(options: tuple[str, ...], apart: float, corpus: str, tmp_path: Path) -> None:
    one = run(1, tmp_path / "one", *SHARED, corpus, *options, "trainer.grad_accum_steps=2")
    two = run(2, tmp_path / "two", *SHARED, corpus, *options)
    same_bits(one, two)
    parts = run(2, tmp_path / "parts", *SHARED, corpus, *options, "strategy=fsdp")
    assert losses(parts) == pytest.approx(losses(one), abs=apart)


@pytest.mark.slow
def test_four_ranks_and_fsdp_agree_to_rounding(corpus: str, tmp_path: Path) -> None:
    """Eight sequences per step, divided in several ways."""
    whole = run(1, tmp_path / "whole", *SHARED, corpus, *PLAIN, "trainer.batch_size=8")
    halves = ("trainer.batch_size=2", "trainer.grad_accum_steps=2")
    others = [
        run(2, tmp_path / "two", *SHARED, corpus, *PLAIN, *halves),
        run(2, tmp_path / "two_in_parts", *SHARED, corpus, *PLAIN, *halves, "strategy=fsdp"),
        run(4, tmp_path / "four", *SHARED, corpus, *PLAIN, "trainer.batch_size=2"),
        run(4, tmp_path / "four_in_parts", *SHARED, corpus, *PLAIN, "trainer.batch_size=2", "strategy=fsdp"),
    ]
    for other in others:
        assert losses(other) == pytest.approx(losses(whole), abs=1e-6)
        assert largest_difference(tensors(other), tensors(whole)) < 1e-6


@pytest.mark.slow
def test_dropped_blocks_are_dropped_on_all_ranks(corpus: str, tmp_path: Path) -> None:
    """Including a block that runs in the first micro-step and not in the last, in which gradients are all-reduced."""
    seeds = [[derive_seed(1337, "layerdrop", step, micro) for micro in range(2)] for step in range(STEPS)]
    assert [True, False] in [[draw_active_blocks(0.7, 4, seed=seed)[-1] for seed in step] for step in seeds]
    options = ("model.n_layers=4", "model.layerdrop=0.7", "trainer.batch_size=2", "trainer.grad_accum_steps=2")
    whole = run(2, tmp_path / "whole", *SHARED, corpus, *options)
    parts = run(2, tmp_path / "parts", *SHARED, corpus, *options, "strategy=fsdp")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    assert logged(parts, "train/grad_norm") == pytest.approx(logged(whole, "train/grad_norm"), rel=1e-5)
    assert largest_difference(tensors(parts), tensors(whole)) < 1e-6


@pytest.mark.slow
def test_adapters_on_two_ranks(corpus: str, tmp_path: Path) -> None:
    """One process, DDP and FSDP; checkpoints of FSDP hold adapters in parts, and one process resumes them."""
    shape = (*SHARED, corpus, "moe=aux_free", *MIXTURE, "attn=mla")
    base = run(1, tmp_path / "base", *shape)
    options = (*shape, *EMA, "trainer.activation_checkpointing=true", f"init_from={base}", "lora=lora", "lora.rank=3")
    options += ("optimizer.lr=3e-3",)
    one = run(1, tmp_path / "one", *options, "trainer.grad_accum_steps=2")
    same_bits(one, run(2, tmp_path / "two", *options))
    parts = run(2, tmp_path / "parts", *options, "strategy=fsdp", f"trainer.stop_after_steps={STEPS // 2}")
    assert train(f"resume={parts}", "strategy=single") == 0
    assert losses(parts) == pytest.approx(losses(one), abs=1e-5)
    loaded = tinyllm.load(parts)[0].state_dict()
    torch.testing.assert_close(loaded, tinyllm.load(one)[0].state_dict(), rtol=0, atol=1e-5)
