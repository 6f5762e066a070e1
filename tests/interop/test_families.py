"""Each family against transformers: equal logits, bit-exact weights after a round trip, the same greedy text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import hub
from tinyllm.config.compose import compose
from tinyllm.inference.generator import generate_text
from tinyllm.programs.export import export
from tinyllm.programs.import_hf import import_hf
from tinyllm.tokenizers.ids import IdsTokenizer

CLOSE = 1e-4
NEW = 20
SEEDS = [
    7,
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2)),
    *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (*range(2, 7), *range(8, 16))),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*has no tokenizer")


def exported(run: Path, out: Path) -> Path:
    export(compose(f"out={out}", program="export"), str(run))
    return out


EVERY_DAY = ("gpt2", "llama", "deepseek_v2")
"""These families cover every layout of weights; the others only add entries of config.json."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[] if one in EVERY_DAY else [pytest.mark.slow]) for one in hub.FAMILIES]
)
def test_import_and_export_preserve_logits_and_weights(family: str, seed: int, tmp_path: Path) -> None:
    theirs = hub.random_model(family, seed)
    there = hub.saved(theirs, tmp_path / "there")
    ours, ids = hub.load(there), hub.ids(seed=seed)
    expected = hub.logits(theirs, ids)
    assert (hub.logits(ours, ids) - expected).abs().max() <= CLOSE
    import_hf(str(there), str(tmp_path / "run"))
    back = exported(tmp_path / "run", tmp_path / "back")
    again = type(theirs).from_pretrained(back).eval()
    assert (hub.logits(again, ids) - expected).abs().max() <= CLOSE
    stored = hub.saved(again, tmp_path / "stored")
    import_hf(str(stored), str(tmp_path / "run2"))
    weights = [load_file(tmp_path / run / "checkpoints/step-000000/model.safetensors") for run in ("run", "run2")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    greedy(ours, again, ids[:1, :5])


def greedy(ours: Any, theirs: Any, ids_BT: torch.Tensor) -> None:
    """Both generate the same tokens after a prompt, with their caches."""
    length = ids_BT.shape[1] + NEW
    settings = {"max_length": length, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = theirs.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **settings)
    tokenizer = IdsTokenizer(vocab_size=hub.VOCAB)
    found = generate_text(ours, tokenizer, tokenizer.decode(ids_BT[0]), max_new_tokens=NEW, temperature=0)
    assert found.split() == [str(int(token)) for token in expected[0]]
