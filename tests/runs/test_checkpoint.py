"""Finding and verifying checkpoints: intact, damaged and hostile ones."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import tinyllm
from tests.support.saves import TEXTS, flip
from tests.support.training_runs import SMALL, digest, train
from tinyllm.errors import UserError
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.runs.checkpoint_writer import Saver


def save(directory: Path, step: int, value: float = 0.0, size: int = 64) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    weights = {"w": torch.full((size,), value)}
    saver = Saver(directory, texts=TEXTS, facts={}, keep=3, asynchronous=False)
    saver.begin(step=step, weights=weights, state={"step": step}, best=False)
    return saver.commit()


DAMAGE = {
    "bit flip in the weights": ("model.safetensors", flip),
    "bit flip in the state": ("state.pt", flip),
    "truncated": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-5])),
    "empty": ("state.pt", lambda p: p.write_bytes(b"")),
    "garbage": ("state.pt", lambda p: p.write_bytes(os.urandom(200))),
    "a web page": ("model.safetensors", lambda p: p.write_text("<html>404</html>")),
    "missing": ("model.safetensors", Path.unlink),
    "manifest missing": ("manifest.json", Path.unlink),
    "manifest empty": ("manifest.json", lambda p: p.write_text("")),
    "manifest of another type": ("manifest.json", lambda p: p.write_text("[]")),
    "configuration edited": ("config.yaml", lambda p: p.write_text("a: 2\n")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_is_used(
    name: str, damage: object, tmp_path: Path
) -> None:
    save(tmp_path / "checkpoints", 1)
    newest = save(tmp_path / "checkpoints", 2)
    damage(newest / name)  # type: ignore[operator]
    messages: list[str] = []
    assert checkpoints.find(tmp_path, tell=messages.append).step == 1
    assert len(messages) == 1
    assert all(text in messages[0] for text in (name, "step-000002", "step-000001"))
    with pytest.raises(UserError, match=re.escape(name)):
        checkpoints.verify(newest)


def test_if_all_checkpoints_are_damaged_each_is_listed_with_its_reason(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path / "checkpoints", step) / "state.pt")
    with pytest.raises(UserError, match=r"no complete checkpoint.*step-000002.*step-000001"):
        checkpoints.find(tmp_path)


def test_swapped_files_of_two_steps_are_detected(tmp_path: Path) -> None:
    one, two = save(tmp_path / "checkpoints", 1, 1.0), save(tmp_path / "checkpoints", 2, 2.0)
    shutil.copy(one / "model.safetensors", two / "model.safetensors")
    assert checkpoints.find(tmp_path).step == 1


def test_hints_may_be_missing_or_wrong(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    save(directory, 1), save(directory, 2)
    assert checkpoints.find(tmp_path, prefer="best").step == 2
    for hint in ("", "step-000009", "../../etc", "\x00"):
        (directory / "best").write_text(hint)
        assert checkpoints.find(tmp_path, prefer="best").step == 2
    (directory / "best").unlink()
    os.mkfifo(directory / "best")  # opening it would block
    assert checkpoints.find(tmp_path, prefer="best").step == 2
    checkpoints.set_hint(directory, "best", 1)
    assert checkpoints.find(tmp_path, prefer="best").step == 1
    assert checkpoints.find(tmp_path, prefer="step-000001").step == 1
    (tmp_path / "run.json").write_text("{}")
    assert checkpoints.find(directory / "best").step == 1 and checkpoints.run_of(directory / "best") == tmp_path
    (directory / "best").write_text("step-000009")
    with pytest.raises(UserError, match="no checkpoint found"):
        checkpoints.find(directory / "best")


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="damaged manifest"):
        checkpoints.verify(path)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_state_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save(tmp_path / "checkpoints", 1)
    torch.save(Hostile(tmp_path / "marker"), path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {
        "bytes": (path / "state.pt").stat().st_size,
        "sha256": checkpoints.sha256(path / "state.pt"),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"state\.pt"):
        checkpoints.verify(path).state()
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 2, 4 and 6, evaluated."""
    path = tmp_path_factory.mktemp("trained") / "run"
    options = ("trainer.max_steps=6", "trainer.checkpoint_every=2", "trainer.eval_every=3", "checkpoint.keep=3")
    assert train("dataset=text", corpus, *SMALL, *options, f"run.dir={path}") == 0
    return path


def test_the_files_of_a_run_and_a_checkpoint(trained: Path) -> None:
    files = {path.name for path in (trained / "checkpoints" / "step-000006").iterdir()}
    assert files == {
        "model.safetensors",
        "state.pt",
        "config.yaml",
        "overrides.yaml",
        "tokenizer.json",
        "manifest.json",
    }
    found = checkpoints.find(trained)
    assert not [name for name in found.weights() if "_orig_mod" in name or name.startswith("module.")]
    assert "head.weight" not in found.weights()  # tied: saved once
    assert set(found.state()["optimizer"]) == set(found.weights())
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    assert {"run.json", "config.yaml", "metrics.jsonl", "curves.png", "checkpoints"} <= names
    facts = json.loads((trained / "run.json").read_text())
    assert facts["status"] == "finished" and facts["versions"]["torch"] == torch.__version__
    assert {group["name"] for group in facts["info"]["optimizer_groups"]} == {"matrix", "embedding", "vector"}


@pytest.mark.slow
def test_resume_from_a_run_whose_newest_checkpoint_is_damaged_equals_the_undamaged_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-000006" / "model.safetensors")
    capsys.readouterr()
    assert train(f"resume={tmp_path / 'run'}") == 0
    out = capsys.readouterr().out
    assert "step-000006" in out and "sha256" in out
    assert digest(tmp_path / "run") == digest(trained)


def test_load_gives_the_trained_model(trained: Path) -> None:
    model, tokenizer = tinyllm.load(trained, checkpoint="last")
    weights = checkpoints.find(trained).weights()
    assert not model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    with pytest.raises(UserError, match="averaged"):
        tinyllm.load(trained, weights="ema")
