"""Which options there are, read from disk, and small models of any combination of them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

import tinyllm
from tinyllm.assemble import plain
from tinyllm.config.build import build
from tinyllm.config.paths import conf_dir
from tinyllm.config.targets import targets_of_directory
from tinyllm.models.transformer import Transformer

PARTS = ("attn", "ffn", "pos", "norm")


def options(group: str, *, directory: Path | None = None) -> list[str]:
    """The names of the option files of a group in the shipped ``conf`` or another such directory."""
    return sorted(path.stem for path in ((directory or conf_dir()) / group).glob("*.yaml"))


@cache
def node(overrides: tuple[str, ...], config_dir: Path | None = None) -> dict[str, Any]:
    """The model node of a composition, as plain containers."""
    return plain(tinyllm.compose(*overrides, config_dir=config_dir).model)


def small(*overrides: str, config_dir: Path | None = None, seed: int = 0, **changes: Any) -> Transformer:
    """Two layers of width 32 with weights large enough that every part matters."""
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "max_seq_len": 12}
    shape |= {"init_std": 0.3, "vocab_size": 31}
    allow = targets_of_directory(config_dir) if config_dir else frozenset()
    torch.manual_seed(seed)
    built = build(node(("model=nano", *overrides), config_dir) | shape | changes, path="model", allow=allow)
    assert isinstance(built, Transformer)
    return built
