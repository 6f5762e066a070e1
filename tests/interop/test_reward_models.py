"""Reward models as transformers' sequence classifiers with one label, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.preferences import write_preferences
from tests.support.training_runs import SMALL, train
from tinyllm import compose
from tinyllm.errors import UserError
from tinyllm.models.transformer import Transformer
from tinyllm.programs.export import export
from tinyllm.programs.load_model import model_of, open_saved

pytestmark = pytest.mark.slow
FAMILIES = {
    "GPT2ForSequenceClassification": ("ffn=mlp", "norm=layernorm", "pos=learned", "model.bias=true"),
    "LlamaForSequenceClassification": ("ffn=swiglu", "norm=rmsnorm", "pos=rope", "model.tie_embeddings=false"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_those_of_transformers_and_the_import_is_exact(name: str, tmp_path: Path) -> None:
    pairs, run, out = write_preferences(tmp_path / "p.jsonl", n_pairs=12), tmp_path / "run", tmp_path / "hf"
    data = ("objective=reward", "dataset=preferences", f"dataset.path={pairs}", "dataset.val_fraction=0.3")
    tokens = ("tokenizer=byte", "tokenizer.special_tokens=standard", "optimizer.lr=1e-2")
    length = ("model.max_seq_len=48", "trainer.max_steps=4", f"run.dir={run}")
    assert train(*SMALL, *FAMILIES[name], *data, *tokens, *length) == 0
    export(compose(f"out={out}", program="export"), str(run))
    saved = open_saved(run)
    model: Transformer = model_of(saved, scores=True)
    assert json.loads((out / "config.json").read_text())["architectures"] == [name]
    theirs = pytest.importorskip("transformers").AutoModelForSequenceClassification.from_pretrained(out)
    pad = saved.tokenizer.special["<pad>"]
    rows = torch.tensor([[5, 6, 7, 8], [9, 3, pad, pad]])
    with torch.no_grad():
        hidden = model(rows)
        expected = [model.score(hidden[row, last]).item() for row, last in ((0, 3), (1, 1))]  # type: ignore[misc]
        assert theirs(rows).logits[:, 0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    again: Any = model_of(open_saved(out), scores=True)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="the run is a reward model"):
        model_of(open_saved(out))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match="num_labels=2"):
        open_saved(out)
    (out / "config.json").write_text(json.dumps(config))
    tensors = load_file(out / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"score\.weight is missing"):
        model_of(open_saved(out), scores=True)
