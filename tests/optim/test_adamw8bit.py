"""8-bit AdamW: which moments are quantized, its distance to AdamW, and what it refuses."""

import sys
from typing import Any

import pytest
import torch

from tinyllm.errors import UserError
from tinyllm.optim.adamw import adamw
from tinyllm.optim.adamw8bit import adamw8bit

RIGHT: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def parameters() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    matrix, table, vector = (torch.nn.Parameter(torch.randn(shape)) for shape in ((128, 64), (100, 64), (64,)))
    return [
        {"params": [matrix], "kind": "matrix"},
        {"params": [table], "kind": "embedding", "weight_decay": 0.0},
        {"params": [vector], "kind": "vector", "weight_decay": 0.0},
    ]


def test_moments_are_8_bit_except_for_embeddings_and_small_tensors() -> None:
    pytest.importorskip("bitsandbytes")
    groups = parameters()
    optimizer = adamw8bit(groups, **RIGHT)
    for group in groups:
        group["params"][0].grad = torch.randn_like(group["params"][0])
    optimizer.step()
    kinds = {group["kind"]: optimizer.state[group["params"][0]]["state1"].dtype for group in groups}
    assert kinds == {"matrix": torch.uint8, "embedding": torch.float32, "vector": torch.float32}


def test_it_stays_near_adamw() -> None:
    """Equal with fp32 moments, within a few percent with 8-bit moments."""
    pytest.importorskip("bitsandbytes")
    groups, others = parameters(), parameters()
    ours, theirs = adamw8bit(groups, **RIGHT), adamw(others, **RIGHT)
    start = [group["params"][0].detach().clone() for group in groups]
    for step in range(20):
        torch.manual_seed(step)
        for a, b in zip(groups, others, strict=True):
            a["params"][0].grad = torch.randn_like(a["params"][0])
            b["params"][0].grad = a["params"][0].grad.clone()
        ours.step()
        theirs.step()
    for a, b, before, limit in zip(groups, others, start, (0.05, 1e-4, 1e-4), strict=True):
        here, there = a["params"][0].detach(), b["params"][0].detach()
        assert float((here - there).norm() / (there - before).norm()) < limit


def test_missing_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        UserError, match=r"bitsandbytes.optim cannot be imported \(.*\) \(optimizer=adamw8bit\): pip install"
    ):
        adamw8bit(parameters(), **RIGHT)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}, {"weight_decay": -0.1}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        adamw8bit(parameters(), **RIGHT | wrong)
