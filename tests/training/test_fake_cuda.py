"""Whole steps of training on a CUDA device that does not exist (``tests/support/fake_cuda.py``).

Every step has exactly one wait, for its metrics; tensors of host and device are never mixed; every operation takes the
dtypes and shapes that it is given on a GPU of the Hopper generation.
"""

from itertools import product
from pathlib import Path

import pytest

from tests.support.fake_cuda import Unavailable, built, problems
from tests.support.options import distinct

GRPO = ("objective=grpo", "objective.group_size=2", "objective.max_new_tokens=4")
CASES = [
    ("trainer.precision=fp32", "attn=gqa", "pos=learned", "norm=layernorm", "ffn=mlp", "model.bias=true"),
    ("trainer.precision=fp16", "attn=mqa", "ffn=swiglu", "model.dropout=0.1", "model.attn_dropout=0.1"),
    ("attn=mla", "moe=aux_free", "ffn=swiglu", "optimizer=muon", "ema.enabled=true"),
    ("attn=mla", "moe=aux_loss", "model.bias=true", "trainer.activation_checkpointing=true", "lora=lora"),
    ("attn=gqa", "model.block.attn.window=5", "model.block.attn.sinks=1", "objective=dpo", "optimizer=lion"),
    ("attn=mha", "model.block.attn.softcap=3", "model.short_conv=4", "objective.z_loss=1e-4", "pos=sinusoidal"),
    ("model.document_mask=true", "attn=gqa", "model.layerdrop=0.5", "objective.label_smoothing=0.1"),
    (
        "attn=mla",
        "model.document_mask=true",
        "model.parallel_block=true",
        "objective=orpo",
        "model.tie_embeddings=false",
    ),
    (*GRPO, "objective.beta=0.1", "pos=rope_yarn"),
    ("objective=reward", "pos=none", "parametrization=mup"),
]
WAITS = ("moe=aux_loss", "trainer.precision=fp16")
"""What torch has no grouped product for: the sizes of the groups must be known on the host."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return built(tmp_path_factory.mktemp("fake_cuda"))
    except Unavailable as reason:
        pytest.skip(f"no library: {reason}")


@pytest.mark.slow
def test_a_step_waits_once(library: Path) -> None:
    *found, waits = problems(library, [*CASES, WAITS])
    assert {case: problem for case, problem in zip(CASES, found, strict=True) if problem} == {}
    assert "grouped_linear.py" in waits and "waits for the device" in waits, "what the test looks for is seen"


@pytest.mark.exhaustive
@pytest.mark.parametrize("attn", distinct("attn"))
def test_a_step_of_every_architecture_and_objective_waits_once(library: Path, attn: str) -> None:
    objectives = [("objective=next_token",), ("objective=dpo",), ("objective=simpo",), ("objective=reward",), GRPO]
    every = product(distinct("ffn"), distinct("moe"), distinct("norm"), objectives)
    cases = [(f"attn={attn}", f"ffn={f}", f"moe={m}", f"norm={n}", *goal) for f, m, n, goal in every]
    found = problems(library, cases)
    assert {case: problem for case, problem in zip(cases, found, strict=True) if problem} == {}
