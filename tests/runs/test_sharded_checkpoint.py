"""Checkpoints of several ranks, read by one process, row by row, by torch and by transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.saves import TEXTS, begin, commit, flip, savers
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.errors import UserError
from tinyllm.runs import checkpoint as checkpoints


def sharded(path: Path, writers: int = 2) -> Path:
    """Replace a checkpoint by the same one as written by several ranks."""
    whole = checkpoints.verify(path)
    weights, state = whole.weights(), whole.state()
    ranks = savers(path.parent, writers=writers, asynchronous=False, keep=9)
    for saver in ranks:
        saver.facts = {name: fact for name, fact in whole.manifest.items() if name not in ("writers", "files")}
        saver.texts = {name: (path / name).read_text() for name in TEXTS}
        names = set(list(weights)[saver.rank :: writers])
        part = {
            **(state if saver.rank == 0 else {}),
            "optimizer": {name: one for name, one in state["optimizer"].items() if name in names},
            "average": {
                "shadow": {name: one for name, one in state["average"]["shadow"].items() if name in names},
                "updates": state["average"]["updates"],
            },
        }
        saver.begin(step=whole.step, weights={name: weights[name] for name in names}, state=part, best=False)
    return commit(ranks)


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with weight averaging, saved at steps 2 and 4."""
    path = tmp_path_factory.mktemp("trained") / "run"
    options = ("trainer.max_steps=4", "trainer.checkpoint_every=2", "ema.enabled=true")
    assert train("dataset=text", corpus, *SMALL, *options, f"run.dir={path}") == 0
    return path


@pytest.fixture
def parts(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run whose last checkpoint is sharded."""
    shutil.copytree(trained, tmp_path / "run")
    sharded(tmp_path / "run" / "checkpoints" / "step-000004")
    return tmp_path / "run"


def test_one_process_reads_a_checkpoint_of_several(trained: Path, parts: Path) -> None:
    assert checkpoints.find(parts).writers == 2
    assert digest(parts) == digest(trained)
    whole, _ = tinyllm.load(trained)
    model, _ = tinyllm.load(parts)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_resumed_from_a_sharded_checkpoint_is_the_same(trained: Path, parts: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "whole")
    for run in (parts, tmp_path / "whole"):
        assert train(f"resume={run}", "trainer.max_steps=7") == 0
    assert digest(parts) == digest(tmp_path / "whole")
    assert metrics(parts) == metrics(tmp_path / "whole")


def test_a_rank_loads_only_its_rows(trained: Path, parts: Path) -> None:
    """Imitates a rank that holds some rows of each matrix; ``local`` maps a tensor to the memory for them."""
    model, _ = tinyllm.load(trained, weights="raw")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    local = {name: one[1:3].clone().zero_() if one.ndim else one for name, one in expected.items()}
    names = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    checkpoints.load_weights(
        checkpoints.find(parts).tensors(),
        model.state_dict(),
        file=parts,
        rows=lambda name, tensor: slice(1, 3) if tensor.ndim else None,
        local=lambda tensor: local[names[tensor.data_ptr()]],
    )
    assert all(torch.equal(local[name], one[1:3] if one.ndim else one) for name, one in expected.items())
    tensors = checkpoints.find(parts).tensors()
    assert set(tensors.names()) == set(expected)
    assert all(tensors.shape(name) == one.shape for name, one in expected.items())
    assert tensors.read("embedding.weight", slice(2, 2)).shape == (0, 32)


@pytest.mark.slow
def test_torch_and_transformers_read_the_weights(parts: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from transformers.trainer_utils import load_sharded_checkpoint

    found = checkpoints.find(parts)
    weights = found.weights()
    target = {name: torch.zeros_like(one) for name, one in weights.items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(target, storage_reader=dcp.HuggingFaceStorageReader(str(found.path)), no_dist=True)
    torch.testing.assert_close(target, weights, rtol=0, atol=0)
    model, _ = tinyllm.load(parts, weights="raw")
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    load_sharded_checkpoint(model, str(found.path))
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


DAMAGE = {
    "shard missing": ("model-00002-of-00002.safetensors", Path.unlink),
    "shard flipped": ("model-00001-of-00002.safetensors", flip),
    "shard of another step": ("model-00002-of-00002.safetensors", lambda p: shutil.copy(p.with_name("config.yaml"), p)),
    "state missing": ("state-00002-of-00002.pt", Path.unlink),
    "state flipped": ("state-00001-of-00002.pt", flip),
    "index missing": ("model.safetensors.index.json", Path.unlink),
    "index garbage": ("model.safetensors.index.json", lambda p: p.write_text("<html>")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_checkpoint_with_a_damaged_part_is_skipped(name: str, damage: Any, tmp_path: Path) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=2)
    for step in (1, 2):
        begin(ranks, step)
        newest = commit(ranks)
    damage(newest / name)
    messages: list[str] = []
    assert checkpoints.find(tmp_path, tell=messages.append).step == 1
    assert len(messages) == 1 and name in messages[0] and "step-000002" in messages[0]


def test_an_index_that_names_other_files_is_refused(tmp_path: Path) -> None:
    ranks = savers(tmp_path / "checkpoints", writers=2)
    begin(ranks, 1)
    path = commit(ranks)
    manifest = json.loads((path / "manifest.json").read_text())
    index = path / "model.safetensors.index.json"
    long = {"weight_map": {"w0": "x" * 5000}}
    for content in (
        long,
        {"weight_map": {"w0": "../other.safetensors"}},
        {"weight_map": ["w0"]},
        {"metadata": {}},
        [1],
    ):
        index.write_text(json.dumps(content))
        digest = checkpoints.sha256(index)
        manifest["files"][index.name] = {"bytes": index.stat().st_size, "sha256": digest}
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"damaged index \(.*index\.json\)"):
            checkpoints.verify(path)
