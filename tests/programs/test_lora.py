"""Runs with adapters: what they save, what they resume, and the programs that read them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.runs.checkpoint import find

SHAPE = (*SMALL, "attn=mla", "moe=aux_free", "ema.enabled=true", "optimizer.lr=1e-2", "model.dropout=0.1")
STEPS = 4


@pytest.fixture(scope="module")
def place(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base, and a run with adapters over it."""
    place = tmp_path_factory.mktemp("lora")
    assert train("dataset=text", corpus, *SHAPE, "trainer.max_steps=2", f"run.dir={place / 'base'}") == 0
    assert train(*adapters(corpus, place), f"run.dir={place / 'run'}") == 0
    yield place


def adapters(corpus: str, place: Path) -> list[str]:
    settings = [*SHAPE, f"trainer.max_steps={STEPS}", "trainer.eval_every=3"]
    settings += ["trainer.sample_every=3", "trainer.sample_tokens=2"]
    settings += ["trainer.grad_accum_steps=2", "trainer.batch_size=2", "lora=lora", "lora.rank=4", "lora.dropout=0.1"]
    return ["dataset=text", corpus, *settings, f"init_from={place / 'base'}"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(place: Path, corpus: str, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    assert train(*adapters(corpus, place), f"run.dir={parts}", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(place / "run")
    assert metrics(parts) == metrics(place / "run")


def test_checkpoints_hold_adapters_and_name_the_base(place: Path) -> None:
    saved, base = find(place / "run"), find(place / "base")
    assert {name.rpartition(".")[2] for name in saved.tensors().names()} == {"lora_a", "lora_b"}
    state = saved.state()
    assert set(state["optimizer"]) == set(saved.tensors().names()) == set(state["average"]["shadow"])
    entry = saved.manifest["adapters"]
    assert (entry["base"], entry["scale"]) == (str(base.path), 4.0)
    assert (saved.path / entry["relative"]).resolve() == base.path.resolve()


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_loaded_weights_are_the_base_plus_the_adapters(place: Path, weights: str) -> None:
    model, _ = tinyllm.load(place / "run", checkpoint="last", weights=weights)
    base = find(place / "base").weights()
    state = find(place / "run").state()
    trained = state["average"]["shadow"] if weights == "ema" else find(place / "run").weights()
    loaded = model.state_dict()
    assert loaded.keys() == base.keys()
    for name, tensor in loaded.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_a" in trained:
            expected = base[name] + 4.0 * (trained[f"{layer}.lora_b"] @ trained[f"{layer}.lora_a"])
            assert torch.equal(tensor, expected) and not torch.equal(tensor, base[name])
        else:
            assert torch.equal(tensor, base[name]), name


def test_evaluate_gives_the_validation_loss_of_the_run(place: Path, call: Any) -> None:
    logged = [record["val/loss"] for record in metrics(place / "run") if "val/loss" in record]
    answer = call("evaluate", f"run={place / 'run'}", "checkpoint=last", "--json")
    assert json.loads(answer.out)["val/loss"] == pytest.approx(logged[-1], abs=2e-6)


@pytest.mark.slow
def test_init_from_a_run_with_adapters_starts_from_the_merged_weights(place: Path, corpus: str, tmp_path: Path) -> None:
    """Also adapters over adapters, whose checkpoints name the first ones."""
    more = ["dataset=text", corpus, *SHAPE, "trainer.max_steps=1", "optimizer.lr=0", f"init_from={place / 'run'}"]
    assert train(*more, f"run.dir={tmp_path / 'merged'}") == 0
    assert train(*more, "lora=lora", "lora.targets=[attn.out]", f"run.dir={tmp_path / 'stacked'}") == 0
    expected = tinyllm.load(place / "run", checkpoint="last", weights="raw")[0].state_dict()
    for run in ("merged", "stacked"):
        state = tinyllm.load(tmp_path / run, weights="raw")[0].state_dict()
        moved = [name for name in expected if not torch.equal(state[name], expected[name])]
        assert moved in ([], ["blocks.0.ffn.bias_E", "blocks.1.ffn.bias_E"]), moved


def test_a_base_that_moved_with_its_run_is_found(place: Path, tmp_path: Path) -> None:
    before = tinyllm.load(place / "run")[0].state_dict()
    moved = Path(shutil.copytree(place, tmp_path / "moved"))
    for checkpoint in (moved / "run" / "checkpoints").glob("step-*"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["adapters"]["base"] = str(tmp_path / "gone")
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    after = tinyllm.load(moved / "run")[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_a_missing_or_changed_base_is_one_line(place: Path, tmp_path: Path, call: Any) -> None:
    for folder in ("base", "run"):
        shutil.copytree(place / folder, tmp_path / folder)
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["adapters"]["base"] = str(tmp_path / "nowhere")
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert train(f"resume={tmp_path / 'base'}", "trainer.max_steps=3") == 0
    kept = sorted((tmp_path / "base" / "checkpoints").glob("step-*"))
    shutil.rmtree(kept[0])
    missing = call("generate", f"run={tmp_path / 'run'}")
    assert missing.code == 2 and missing.err.count("\n") == 1
    assert "error: the weights that the adapters belong to are missing (" in missing.err
    kept[1].rename(kept[0])
    manifest = json.loads((kept[0] / "manifest.json").read_text()) | {"step": 2}
    (kept[0] / "manifest.json").write_text(json.dumps(manifest))
    for changed in (call("train", f"resume={tmp_path / 'run'}"), call("export", f"run={tmp_path / 'run'}", "out=x")):
        assert changed.code == 2 and changed.err.count("\n") == 1 and changed.made == []
        assert "error: the weights that the adapters belong to have changed (" in changed.err


@pytest.mark.slow
def test_a_manifest_cannot_lead_in_a_circle(place: Path, tmp_path: Path, call: Any) -> None:
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    checkpoint = find(run).path
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["adapters"]["base"] = str(checkpoint)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    answer = call("generate", f"run={checkpoint}")
    assert answer.code == 2 and "have changed" in answer.err and answer.err.count("\n") == 1
    for entry in ([], {"base": 1}, manifest["adapters"] | {"scale": "4"}):
        (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"adapters": entry}))
        answer = call("generate", f"run={checkpoint}")
        assert answer.code == 2 and "damaged manifest" in answer.err and answer.err.count("\n") == 1


@pytest.mark.slow
def test_a_resumed_run_keeps_its_adapters(place: Path, call: Any) -> None:
    for setting in ("lora=none", "lora.rank=8", "lora.targets=[qkv]"):
        answer = call("train", f"resume={place / 'run'}", setting)
        assert answer.code == 2 and "a resumed run cannot change lora" in answer.err, answer.err
    plain = call("train", f"resume={place / 'base'}", "lora=lora")
    assert plain.code == 2 and "a resumed run cannot change lora" in plain.err


@pytest.mark.slow
def test_a_run_that_was_resumed_is_replayed_from_the_same_base(
    place: Path, corpus: str, tmp_path: Path, call: Any
) -> None:
    run = tmp_path / "run"
    assert train(*adapters(corpus, place), f"run.dir={run}", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={run}") == 0
    answer = call("replay", str(run))
    assert answer.code == 0 and "verdict: bitwise the same" in answer.out and "differs" not in answer.out


@pytest.mark.slow
def test_a_scaling_study_takes_no_adapters(call: Any) -> None:
    for setting in ("lora=lora", "init_from=run"):
        answer = call("scaling", setting)
        assert answer.code == 2 and "every size is trained from random weights" in answer.err
