"""Data sets of the hub and raw ids in the programs: train, resume, evaluate, describe, replay."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import hub_sets
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, train
from tinyllm.programs import evaluate as program

STEPS = ("trainer.max_steps=4", "trainer.eval_every=2")


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_sets.wikitext(tmp_path_factory.mktemp("sets") / "wikitext", articles=20)


def settings_of(wikitext: Path) -> tuple[str, ...]:
    return ("dataset=wikitext", f"dataset.path={wikitext}", "dataset.config=wikitext-2-raw-v1", "tokenizer=byte")


@pytest.mark.slow
def test_word_perplexity_of_a_uniform_model_is_the_closed_form(
    wikitext: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp(ln(vocabulary) · predicted tokens / words of the uncleaned text), with labels in the table and the JSON."""
    assert train(*SMALL, *settings_of(wikitext), *STEPS, f"run.dir={tmp_path / 'run'}") == 0
    load = program.model_of

    def uniform(*arguments: object, **keywords: object) -> torch.nn.Module:
        model: torch.nn.Module = load(*arguments, **keywords)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    monkeypatch.setattr(program, "model_of", uniform)
    for split, name in (("val", "validation"), ("test", "test")):
        [file] = (wikitext / "wikitext-2-raw-v1").glob(f"{name}-*")
        words = sum(len(line.split()) for line in pq.read_table(file)["text"].to_pylist())
        answer = call("evaluate", f"run={tmp_path / 'run'}", f"split={split}", "--json")
        result = json.loads(answer.out)
        assert result[f"{split}/words"] == words
        assert result[f"{split}/loss"] == pytest.approx(math.log(257), rel=1e-6)
        expected = math.exp(math.log(257) * result["tokens"] / words)
        assert result[f"{split}/word_ppl"] == pytest.approx(expected, rel=1e-4)
    shown = call("evaluate", f"run={tmp_path / 'run'}", "split=test").out
    assert "word ppl (words of the uncleaned text)" in shown


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hub", "bin"])
def test_a_run_resumes_bitwise_and_is_described_and_replayed(
    kind: str, wikitext: Path, tmp_path: Path, call: Call
) -> None:
    if kind == "hub":
        data = settings_of(wikitext)
    else:
        ids = np.random.default_rng(0).integers(0, 90, size=3000).astype(np.uint16)
        ids.tofile(tmp_path / "train.bin")
        data = ("dataset=bin", f"dataset.path={tmp_path / 'train.bin'}", "dataset.eot_id=7")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*SMALL, *data, *STEPS, f"run.dir={whole}") == 0
    assert train(*SMALL, *data, *STEPS, "trainer.max_steps=2", f"run.dir={parts}", "schedule=constant") == 0
    assert train(*SMALL, *data, *STEPS, f"run.dir={tmp_path / 'straight'}", "schedule=constant") == 0
    assert train(f"resume={parts}", "trainer.max_steps=4") == 0
    assert digest(parts) == digest(tmp_path / "straight")
    assert call("describe", *SMALL, *data).code == 0
    assert call("prepare", *data).code == 0
    replayed = call("replay", str(whole))
    assert replayed.code == 0, replayed
