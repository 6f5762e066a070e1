"""Small models of every kind the shipped configuration has, and a tokenizer without a file."""

from typing import Any

import torch

from tests.support.options import SAME_ROTATION, described
from tinyllm.config.build import build
from tinyllm.config.option_files import conf_dir
from tinyllm.models.transformer import Transformer


def options(group: str) -> list[str]:
    """The names of the option files of a group, as they are on disk; of those that only differ in numbers, some."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if path.stem not in SAME_ROTATION)


def model_node(*overrides: str) -> dict[str, Any]:
    """The configuration of a model of two layers, as plain containers."""
    return described(overrides) | {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "init_std": 0.3}


def tiny_model(*overrides: str, vocab_size: int = 17, max_seq_len: int = 12, seed: int = 0) -> Transformer:
    """A model of two layers with weights large enough that it does not repeat one token for ever."""
    node = model_node(*overrides) | {"max_seq_len": max_seq_len}
    torch.manual_seed(seed)
    model = build(node, path="model", vocab_size=vocab_size)
    assert isinstance(model, Transformer)
    with torch.no_grad():
        model.embedding.weight.mul_(4)  # as strong as the sines of pos=sinusoidal
    return model


class Scripted:
    """A model that says the given tokens one after the other, whatever it reads; row i from script i."""

    max_seq_len = 64
    training = False
    device = torch.device("cpu")

    def __init__(self, *scripts: list[int], vocab_size: int = 257) -> None:
        self.scripts, self.vocab_size, self.step = list(scripts), vocab_size, 0

    def train(self, mode: bool = True) -> "Scripted":
        self.training = mode
        return self

    def __call__(self, ids_BT: torch.Tensor, *, cache: object = None) -> torch.Tensor:
        return torch.zeros(*ids_BT.shape, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        said = torch.tensor([script[min(self.step, len(script) - 1)] for script in self.scripts])
        self.step += 1
        return torch.nn.functional.one_hot(said, self.vocab_size) * 1000.0

    def make_cache(self, batch_size: int, max_len: int) -> "Scripted":
        return self  # as a cache, it remembers which rows there are

    def rows(self, start: int, stop: int) -> "Scripted":
        return self

    def keep(self, rows: list[int]) -> "Scripted":
        self.scripts = [self.scripts[row] for row in rows]
        return self

    def reset(self) -> None:
        pass

    repeat_first = reset
