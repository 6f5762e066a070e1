"""describe, prepare and load: figures against closed forms, output against what a program can read."""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import tinyllm
import tinyllm.describe
import tinyllm.prepare
from tests.training.runs import write_corpus
from tinyllm.assemble import build_model
from tinyllm.training.memory import activation_bytes


def call(program: object, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and standard output of a program run in this process."""
    capsys.readouterr()
    argv = mock.patch.object(sys, "argv", ["tinyllm", *overrides])
    with argv, mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:  # main() sets HYDRA_FULL_ERROR
        program.main()  # type: ignore[attr-defined]
    return int(end.value.code or 0), capsys.readouterr().out


def described(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, dict[str, int]]:
    code, out = call(tinyllm.describe, capsys, *overrides, "--json")
    assert code == 0
    return json.loads(out)


def test_the_parameters_of_large_are_those_of_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    d, layers, ff, vocabulary = 1600, 32, 6400, 32000
    facts = described(capsys, "model=large")
    expected = vocabulary * d + layers * (4 * d * d + 2 * d * ff + 2 * d) + d
    assert facts["parameters"]["total"] == facts["parameters"]["active per token"] == expected
    assert facts["parameters"]["embedding"] == vocabulary * d
    matrices = layers * (4 * d * d + 2 * d * ff) + vocabulary * d
    attention = layers * 2 * 4096 * d  # scores and weighted values, a product each
    assert facts["FLOPs per token"]["train, context 4096"] == 3 * 2 * (matrices + attention)


@pytest.mark.parametrize(("attn", "heads"), [("mha", 25), ("gqa", 5), ("mqa", 1)])
def test_the_cache_holds_unrepeated_heads(attn: str, heads: int, capsys: pytest.CaptureFixture[str]) -> None:
    facts = described(capsys, "model=large", f"attn={attn}")
    assert facts["KV cache, bytes per token"] == {"fp32": 32 * 2 * heads * 64 * 4, "bf16": 32 * 2 * heads * 64 * 2}


def test_the_vocabulary_is_assumed_and_said_until_it_is_in_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', seed=99)}")
    before = described(capsys, *data)
    assert before["parameters"]["vocabulary"] == 256
    assert "256 is assumed" in before["notes"][0]
    code, out = call(tinyllm.prepare, capsys, *data, "--json")
    assert code == 0
    prepared = json.loads(out)
    after = described(capsys, *data)
    assert after["parameters"]["vocabulary"] == prepared["vocabulary"]
    assert after["notes"] == []


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(tinyllm.describe, capsys, "model=xlarge", "attn=gqa", "trainer.batch_size=1")
    assert code == 0
    assert "untied" not in out and "tied" in out and "GB" in out and "\x1b" not in out


def test_the_activation_estimate_is_near_what_autograd_keeps() -> None:
    """Against the bytes that a real pass on the CPU asks autograd to keep."""
    cfg = tinyllm.compose("model.d_model=64", "model.n_heads=4", "model.n_layers=3", "model.d_ff=256")
    build = {"vocab_size": 50, "seed": 0, "allow": frozenset()}
    model = build_model(cfg, device=torch.device("cpu"), **build)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.zeros(4, 128, dtype=torch.int64))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    sketch = build_model(cfg, device=torch.device("meta"), **build)
    estimate = activation_bytes(sketch, batch_size=4, seq_len=128, n_heads=4, device="cpu", dtype=torch.float32)
    assert hidden.requires_grad
    assert estimate == pytest.approx(real, rel=0.15)
