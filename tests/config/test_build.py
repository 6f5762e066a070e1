"""Constructors receive arguments of the annotated types."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
import torch

import tinyllm
from tests.support.options import small
from tinyllm.config.build import build
from tinyllm.config.targets import converted, type_problem
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_optimizer

OPTIMIZERS = ("adamw", "lion", "muon")


@pytest.mark.parametrize(
    ("written", "annotation", "wanted"),
    [
        (1, float, 1.0),
        (True, float, True),
        (1, int | float, 1),
        (1, float | None, 1.0),
        (None, float | None, None),
        (1, Literal["auto", 1] | float, 1),
        ([0.9, 0], tuple[float, float], [0.9, 0.0]),
        ([0.9, 0], tuple[float | torch.Tensor, float | torch.Tensor], [0.9, 0.0]),
        ([1, 2], list[float] | None, [1.0, 2.0]),
        ([[1], []], Sequence[Sequence[float]], [[1.0], []]),
        ([1, "2"], tuple[float, str], [1.0, "2"]),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ([1, 2, 3], tuple[float, float], [1, 2, 3]),
        ("1", float, "1"),
        ([1, 2], list[int], [1, 2]),
        ([1], list[Any], [1]),
    ],
    ids=str,
)
def test_whole_numbers_become_floats_where_the_annotation_says_float(
    written: Any, annotation: Any, wanted: Any
) -> None:
    found = converted(written, annotation)
    assert found == wanted and repr(found) == repr(wanted)


def test_values_of_a_mapping_are_checked() -> None:
    assert type_problem({"a": 1, "b": 2.5}, dict[str, float]) is None
    assert type_problem({"a": "x"}, dict[str, float]) == "names, each with a number"
    assert type_problem("x", int | float | None) == "a number or null"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_betas_of_two_types_are_accepted(optimizer: str) -> None:
    cfg = tinyllm.compose(f"optimizer={optimizer}", "optimizer.betas=[0.9,0]", "optimizer.weight_decay=0")
    model = small()
    made, _ = build_optimizer(cfg, model, allow=frozenset())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()


def test_an_optimizer_of_torch_gets_floats_too() -> None:
    node = {"_target_": "torch.optim.Adam", "_partial_": True, "betas": [0, 0.9], "lr": 1}
    made = build(node, path="optimizer")([torch.nn.Parameter(torch.ones(2))])
    assert made.defaults["betas"] == (0.0, 0.9) and isinstance(made.defaults["lr"], float)


def test_numbers_in_nested_nodes_are_converted() -> None:
    cfg = tinyllm.compose("model=pico", "model.norm.eps=1")
    model = build(cfg.model, path="model", vocab_size=9)
    assert isinstance(model, Transformer) and isinstance(model.norm.eps, float)


def test_a_whole_number_beyond_floats_is_refused() -> None:
    with pytest.raises(tinyllm.errors.UserError, match=r"not a finite number \(optimizer.lr=inf\)"):
        tinyllm.compose(f"optimizer.lr={10**400}")
