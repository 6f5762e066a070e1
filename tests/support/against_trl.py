"""TRL as an independent implementation: its import without noise, and our models as transformers has them.

Importing it takes ten seconds and warns, so it is imported inside of tests that are not run every day.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tinyllm.interop.convert import convert
from tinyllm.models.transformer import Transformer
from tinyllm.programs.load_model import load

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE")
ONE_STEP = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "max_steps": 1,
    "learning_rate": 0.0,
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
"""Arguments of every trainer: one step on the CPU that changes nothing and reports to nobody."""


def imported(monkeypatch: pytest.MonkeyPatch, name: str = "trl") -> ModuleType:
    """A module of TRL, offline and silent; skips the test where it is not installed."""
    for variable in OFFLINE:
        monkeypatch.setenv(variable, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: ModuleType = pytest.importorskip(name)
    return module


def as_transformers(model: Transformer, exported: Path) -> Any:
    """The model of transformers in an exported directory, with the weights and the dtype of a model of ours."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=next(model.parameters()).dtype)
    missing = theirs.load_state_dict(named_as_theirs(model, model.state_dict()), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return theirs


def named_as_theirs(model: Transformer, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights or their gradients by the names, and in the layouts, of transformers."""
    return convert(model, tensors)[2]


def changed_model(run: Path, *, seed: int, by: float = 0.05, dtype: torch.dtype = torch.float64) -> Transformer:
    """The model of a run, its weights changed a little, so that it differs from the one that was exported."""
    model: Transformer = load(run)[0].to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * weight.std() * torch.randn(weight.shape, generator=generator, dtype=dtype)
    return model
