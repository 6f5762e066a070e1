"""Constructor parameters, inherited ones included."""

from functools import partial

import pytest
from torch import nn
from torch.optim import SGD

from tinyllm.nn.attention.mha import GQA, MHA, MQA
from tinyllm.nn.moe import AuxFree, Mixture
from tinyllm.utils.signatures import annotations_of, make, parameters_of


class Base:
    def __init__(self, *, width: int, depth: int = 1) -> None:
        self.sizes = width, depth


class Derived(Base):
    def __init__(self, *, strength: float, **shared: int) -> None:
        super().__init__(**shared)
        self.strength = strength


class Anything:
    def __init__(self, **keys: int) -> None:
        pass


class Layer(nn.Module):
    def __init__(self, **keys: int) -> None:
        super().__init__()


def test_kwargs_stand_for_the_parameters_of_the_base() -> None:
    assert set(parameters_of(Derived) or ()) == {"width", "depth", "strength"}
    assert {"width": int, "strength": float}.items() <= annotations_of(Derived).items()
    made = make(partial(Derived, depth=3), width=2, strength=0.5, depth=9, height=4)
    assert (made.sizes, made.strength) == ((2, 3), 0.5)


@pytest.mark.parametrize("target", [Anything, Layer, lambda **keys: keys], ids=["plain", "module", "function"])
def test_kwargs_without_a_base_take_any(target: object) -> None:
    assert parameters_of(target) is None


def test_classes_of_libraries_are_left_as_they_are() -> None:
    assert parameters_of(nn.Module) == {}
    assert "momentum" in (parameters_of(SGD) or {})


def test_parts_of_the_package() -> None:
    assert parameters_of(MQA) == parameters_of(MHA)
    assert set(parameters_of(GQA) or ()) - set(parameters_of(MHA) or ()) == {"n_kv_heads"}
    assert set(parameters_of(AuxFree) or ()) - set(parameters_of(Mixture) or ()) == {"gamma", "alpha"}
