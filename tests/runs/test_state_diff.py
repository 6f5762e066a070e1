"""Two runs are compared bit by bit, and the differences are named."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.training_runs import SMALL, train
from tinyllm.runs.checkpoint import find
from tinyllm.runs.state_diff import (
    Contents,
    comparable_records,
    compare,
    compare_records,
    contents,
    difference,
    digest,
    leaves,
)


@pytest.fixture(scope="module")
def run(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "run"
    options = ("ema.enabled=true", "trainer.precision=fp16", "trainer.max_steps=2")
    assert train("dataset=text", corpus, *SMALL, *options, f"run.dir={path}") == 0
    return path


def test_contents_has_everything_a_resume_needs(run: Path) -> None:
    found = contents(find(run))
    assert {path.partition("/")[0] for path in found} >= {
        "weights",
        "optimizer",
        "average",
        "scaler",
        "rng",
        "counters",
    }
    assert "counters/sequences" in found and not [path for path in found if "seconds" in path]
    assert {f"optimizer/{name}/exp_avg" for name in find(run).weights()} <= found.keys()


@pytest.mark.parametrize("path", ["weights/", "average/", "optimizer/", "scaler/", "rng/", "counters/step"])
def test_a_single_changed_bit_is_named(path: str, run: Path) -> None:
    one, other = contents(find(run)), contents(find(run))
    assert all(section.equal for section in compare(one, other))
    key = next(key for key in other if key.startswith(path))
    other[key] = changed(other[key])
    [section] = [section for section in compare(one, other) if not section.equal]
    assert section.differences[0].startswith(f"{key}: ") and len(section.differences) == 1
    assert digest(one) != digest(other)


def changed(value: object) -> object:
    if isinstance(value, torch.Tensor):
        copy = value.detach().clone()
        copy.flatten().view(torch.uint8)[0] ^= 1
        return copy
    if isinstance(value, list):
        return [*value[:-1], "another"]
    return f"{value}1"


def test_difference_sees_bits_dtypes_and_types() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert not difference(nan, nan.clone())
    assert "0 of 1 values differ" in difference(zero, -zero)
    assert difference(torch.ones(2), torch.ones(2, dtype=torch.float64)).startswith("torch.float32 (2,) and")
    assert "at most 0.5" in difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    assert difference(1, 1.0) and not difference([1, "a"], [1, "a"])


def test_values_of_one_run_only_are_named() -> None:
    one: Contents = dict(leaves({"w": torch.ones(1), "b": torch.ones(1)}, "weights"))
    [section] = compare(one, {"weights/w": torch.ones(1)})
    assert section.differences == ["weights/b: only in the first run"] and section.values == 2


def test_records_are_compared_without_the_clock(tmp_path: Path) -> None:
    lines = [{"step": 1, "seconds": 3.0, "speed/mfu": 0.1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = comparable_records(tmp_path / "metrics.jsonl")
    assert kept == [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}]
    assert compare_records(kept, kept).equal
    assert "steps: [1, 2] and [1]" in compare_records(kept, kept[:1]).differences[0]
    other = [kept[0], {"step": 2, "train/loss": 1.5}]
    assert compare_records(kept, other).differences == ["train/loss of step 2: 1.0 and 1.5"]
