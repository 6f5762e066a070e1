"""Training on documents: packed windows and attention within documents, from the command line to the checkpoint."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tests.support.training_runs import SMALL, WORDS, digest, logged, metrics, train
from tinyllm.data.documents import document_lengths
from tinyllm.data.sampler import Sampler
from tinyllm.programs.builders import build_model, open_corpus, open_data
from tinyllm.utils.seeds import derive_seed

CPU = torch.device("cpu")
DOCUMENTS = (
    "model.document_mask=true", "dataset.packing=best_fit", "tokenizer=byte", "trainer.activation_checkpointing=true",
    "curriculum.enabled=true", "curriculum.steps=4", "trainer.grad_accum_steps=2", "trainer.batch_size=2",
    "model.max_seq_len=24", "model.dropout=0.1", "trainer.max_steps=6", "trainer.eval_every=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting of a folder of 40 short documents."""
    folder, chosen = tmp_path_factory.mktemp("texts"), random.Random(0)
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(" ".join(chosen.choices(WORDS, k=chosen.randint(1, 9))))
    return f"dataset.path={folder}"


@pytest.mark.slow
def test_a_resumed_run_equals_the_whole_one_and_says_how_it_packs(texts: str, tmp_path: Path) -> None:
    shared = ["dataset=text", texts, *SMALL, *DOCUMENTS]
    assert train(*shared, f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    info = json.loads((tmp_path / "whole" / "run.json").read_text(encoding="utf-8"))["info"]
    [note] = [note for note in info["notes"] if note.startswith("dataset.packing=best_fit: ")]
    assert re.fullmatch(r".*: \d+ documents in \d+ windows per epoch, \d+\.\d\d% padding; \d+ longer than .*", note)
    assert info["attention_kernel"].endswith("by document")


def test_flops_are_an_average_over_the_documents(texts: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["dataset=text", texts, *SMALL, "model.document_mask=true", "tokenizer=byte", "trainer.max_steps=1"]
    assert train(*settings, f"run.dir={run}") == 0
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    data = open_data(*open_corpus(cfg, allow=frozenset()))
    sampler = Sampler(data.train, seq_len=16, seed=derive_seed(cfg.seed, "data"))
    lengths = [length for length, count in document_lengths(sampler, 16).items() for _ in range(count)]
    assert 1 < sum(lengths) / len(lengths) < 16
    model = build_model(cfg, vocab_size=data.tokenizer.vocab_size, seed=0, device=CPU, allow=frozenset())
    expected = round(sum(n * model.training_flops_per_token(n) for n in lengths) / sum(lengths))
    assert logged(run, "flops") == [4 * 16 * expected]
