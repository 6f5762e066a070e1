"""Coordinate checks pass under muP and fail under the standard parametrization, for every option found on disk."""

import csv
import math
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.support.options import CONTEXT, distinct, options, small
from tests.support.training_runs import write_corpus
from tinyllm import coord_check
from tinyllm.config.compose import compose
from tinyllm.data.batch import Batch
from tinyllm.models.parametrization import MatrixScaling
from tinyllm.programs.builders import build_model, build_optimizer
from tinyllm.studies.coord_check.coordinates import ActivationSite, Coordinate, Slope, activations, check, slopes

WIDTHS = (32, 64, 128, 256)
LIMITS = {"growth": 0.25, "shrinkage": 0.5}
VOCABULARY = 50


def power_law(width: int, seed: int, step: int, kind: str, size: float, change: float) -> Coordinate:
    """A coordinate whose size and change are powers of the width; seeds differ by a factor."""
    factor = 1.1**seed
    return Coordinate(
        width=width, seed=seed, step=step, kind=kind, block=None,
        size=factor * width**size, change=factor * width**change,
    )  # fmt: skip


def test_slopes_are_fitted_to_the_last_step() -> None:
    powers = {"attention": (0.1, 0.2), "feed-forward": (-1, -0.6), "residual stream": (0.3, 0.3), "logits": (-0.5, 0)}
    found = [
        power_law(width, seed, step, kind, size + (step == 1), change)
        for width, seed, step, (kind, (size, change)) in product((16, 32, 128), (0, 1), (1, 2), powers.items())
    ]
    fits = {(fit.kind, fit.figure): fit for fit in slopes(found, **LIMITS)}
    for kind, (size, change) in powers.items():
        assert fits[kind, "size"].slope == pytest.approx(size)
        assert fits[kind, "change"].slope == pytest.approx(change)
    failing = {key for key, fit in fits.items() if not fit.passes}
    assert failing == {("feed-forward", "change"), ("residual stream", "size"), ("residual stream", "change")}


def test_blocks_enter_as_their_geometric_mean() -> None:
    found = [
        Coordinate(width=width, seed=0, step=1, kind=kind, block=block, size=1.0, change=float(width) ** block)
        for width, kind, block in product((2, 8), ("attention", "feed-forward", "residual stream", "logits"), (0, 2))
    ]
    assert [fit.slope for fit in slopes(found, **LIMITS) if fit.figure == "change"] == pytest.approx([1.0] * 4)


def test_slope_of_nan_fails() -> None:
    assert not Slope(kind="logits", figure="size", slope=math.nan, error=0, low=-math.inf, high=1).passes


def test_activations_are_the_outputs_of_the_parts() -> None:
    model = small("moe=aux_free", dropout=0.5)
    ids = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    found = activations(model, ids)
    with torch.no_grad():
        x = model.pos.embed(model.embedding(ids), 0)
        for i, block in enumerate(model.layers()):
            attended = block.attn(block.norm1(x))
            fed = block.ffn(block.norm2(x + attended))[0]
            x = x + attended + fed
            for kind, value in (("attention", attended), ("feed-forward", fed), ("residual stream", x)):
                torch.testing.assert_close(found[ActivationSite(kind, i)], value)
        torch.testing.assert_close(found[ActivationSite("logits", None)], model.logits(model.norm(x)))
    assert not any(module._forward_hooks for module in model.modules())


@cache
def composed(*overrides: str) -> Any:
    return compose(f"model.max_seq_len={CONTEXT}", "model.n_layers=2", *overrides)


def untouched(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Change nothing."""


def failing(*overrides: str, spoil: Callable[[Any, torch.optim.Optimizer], None] = untouched) -> list[str]:
    """Failing slopes after the first steps of widths 32 to 256 on random tokens, at the optimizer's learning rate."""
    cfg = composed(*overrides)

    def make(width: int, seed: int) -> tuple[Any, torch.optim.Optimizer]:
        own = deepcopy(cfg)
        own.model.d_model, own.model.d_ff = width, 4 * width
        model = build_model(own, vocab_size=VOCABULARY, seed=seed, device=torch.device("cpu"), allow=frozenset())
        optimizer, _ = build_optimizer(own, model, allow=frozenset())
        spoil(model, optimizer)
        return model, optimizer

    ids = torch.randint(VOCABULARY, (5, 8, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    batches = [Batch(inputs=sequences[:, :-1], targets=sequences[:, 1:]) for sequences in ids[:-1]]
    lr, probe = cfg.optimizer.lr, ids[-1][:, :-1]
    found = check(make, batches, probe, widths=WIDTHS, seeds=(0,), lr=lr, grad_clip=cfg.trainer.grad_clip)
    return [f"{fit.kind} {fit.figure} {fit.slope:.2f}" for fit in slopes(found, **LIMITS) if not fit.passes]


OPTIMIZERS = [(f"optimizer={name}",) for name in options("optimizer")]
OPTIMIZERS += [
    ("optimizer=muon", "optimizer.scale=spectral", "optimizer.adamw_lr=1e-3", "optimizer.lr=1e-2"),
    ("optimizer=muon", "model.tie_embeddings=false"),
    ("model.tie_embeddings=false",),
]
PARTS = list(product(distinct("attn"), distinct("ffn"), distinct("moe")))
LATIN = [parts for i, parts in enumerate(PARTS) if i % 5 == 0]
"""A few combinations in which every option occurs."""


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OPTIMIZERS, ids=" ".join)
def test_every_optimizer(overrides: tuple[str, ...]) -> None:
    if "optimizer=adamw8bit" in overrides:
        pytest.importorskip("bitsandbytes")
    assert failing("parametrization=mup", *overrides) == []
    assert len(failing("parametrization=standard", *overrides)) == 8, "everything grows"


def test_selected_combinations_cover_every_option() -> None:
    assert [set(column) for column in zip(*LATIN, strict=True)] == [set(column) for column in zip(*PARTS, strict=True)]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=" ".join(parts), marks=pytest.mark.slow if parts in LATIN else pytest.mark.exhaustive)
        for parts in PARTS
    ],
)
def test_every_combination(parts: tuple[str, str, str]) -> None:
    overrides = [f"{group}={name}" for group, name in zip(("attn", "ffn", "moe"), parts, strict=True)]
    assert failing("parametrization=mup", *overrides) == []
    assert len(failing("parametrization=standard", *overrides)) == 8, "everything grows"


def no_output_multiplier(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.output_multiplier = 1.0


def no_rates(model: Any, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr_scale"] = 1.0


@pytest.mark.slow
def test_missing_mup_rule_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """muP fails if one of its rules is removed."""
    assert {failure.split()[0] for failure in failing("parametrization=mup", spoil=no_output_multiplier)} == {"logits"}
    assert [failure for failure in failing("parametrization=mup", spoil=no_rates) if "change" in failure]
    monkeypatch.setattr(MatrixScaling, "std_factor", 1.0)
    assert [failure for failure in failing("parametrization=mup") if "feed-forward size" in failure]


def program(*overrides: str) -> int:
    """Run ``python -m tinyllm.coord_check`` in this process; returns its exit code."""
    with mock.patch.object(sys, "argv", ["tinyllm-coord-check", *overrides]), pytest.raises(SystemExit) as end:
        coord_check.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("widths=[64]", "widths=[64]): at least two"),
        ("schedule=wsd", "no effect here (schedule)"),
        ("widths=[30,60]", "d_model=30 is not divisible"),
    ],
)
def test_refused_settings(setting: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(setting) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_corpus(tmp_path / "words.txt")
    shared = (
        "dataset=text",
        f"dataset.path={text}",
        "widths=[32,64,128]",
        "model.n_layers=1",
        "seeds=1",
        "optimizer=adamw",
    )
    for parametrization, code, word in (("mup", 0, "pass"), ("standard", 1, "FAIL")):
        out = tmp_path / parametrization
        assert program(*shared, f"parametrization={parametrization}", f"out={out}") == code
        assert f"{word}: a size or a change" in capsys.readouterr().out
        rows = list(csv.DictReader((out / "coord_check.csv").read_text(encoding="utf-8").splitlines()))
        assert len(rows) == 3 * 5 * 4  # widths, steps, places
        assert {row["change"] for row in rows if row["step"] == "0"} == {"0.0"}
        assert (out / "coord_check.svg").stat().st_size and (out / "coord_check.png").stat().st_size
        assert program(*shared, f"out={out}") == 2, "existing results are never overwritten"
