"""The plan of a run: its model is built once on meta, to count on, and once to train."""

from pathlib import Path

import pytest
import torch

import tinyllm
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_model, build_optimizer, optimizer_bytes

META = torch.device("meta")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices of the models that were built, in order."""
    devices: list[str] = []
    construct = Transformer.__init__

    def counted(self: Transformer, **settings: object) -> None:
        construct(self, **settings)  # type: ignore[arg-type]
        devices.append(self.device.type)

    monkeypatch.setattr(Transformer, "__init__", counted)
    return devices


@pytest.mark.slow
def test_a_run_builds_its_model_once_on_meta_and_once_to_train(tmp_path: Path, builds: list[str]) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}")
    run = tmp_path / "run"
    assert train(*SMALL, *data, "trainer.max_steps=2", "trainer.stop_after_steps=1", f"run.dir={run}") == 0
    assert builds == ["meta", "cpu"]
    builds.clear()
    assert train(f"resume={run}") == 0
    assert builds == ["meta", "cpu"]
    builds.clear()
    assert train(*SMALL, *data, "trainer.max_steps=1", f"init_from={run}", f"run.dir={tmp_path / 'next'}") == 0
    assert builds == ["meta", "cpu"]


@pytest.mark.parametrize("overrides", [["model.tie_embeddings=true"], ["model.tie_embeddings=false"]])
@pytest.mark.parametrize("parametrization", ["standard", "mup"])
def test_a_resized_vocabulary_counts_as_if_built_with_it(overrides: list[str], parametrization: str) -> None:
    cfg = tinyllm.compose("model=pico", f"parametrization={parametrization}", *overrides)
    settings = {"seed": 0, "device": META, "allow": frozenset[object]()}
    resized = build_model(cfg, vocab_size=256, **settings)  # type: ignore[arg-type]
    resized.resize_vocabulary(1000)
    built = build_model(cfg, vocab_size=1000, **settings)  # type: ignore[arg-type]
    assert resized.parameter_counts() == built.parameter_counts()
    assert resized.flops_per_token(16) == built.flops_per_token(16)
    assert resized.matrix_scalings == built.matrix_scalings
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (resized, built)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    assert optimizer_bytes(cfg, resized, allow=frozenset()) == optimizer_bytes(cfg, built, allow=frozenset())
    groups = [build_optimizer(cfg, model, allow=frozenset())[1] for model in (resized, built)]
    assert groups[0] == groups[1]
