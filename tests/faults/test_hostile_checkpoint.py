"""Untrusted checkpoints with a valid manifest: nothing in them is executed, and nothing is taken on trust.

Classes that its configuration names: tests/config/test_targets.py; a pickle in its state: tests/runs/
test_checkpoint.py.
"""

import io
import json
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tinyllm
from tests.support.training_runs import SMALL, train
from tinyllm.errors import UserError
from tinyllm.utils.files import sha256

MEMORY = 300_000_000
"""A generous limit on the memory for refusing a small file."""


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train("dataset=text", corpus, *SMALL, "trainer.max_steps=2", f"run.dir={run}") == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a new working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


def forge(run: Path, name: str, content: bytes) -> Path:
    """Replace a file of the checkpoint, and update the manifest."""
    [checkpoint] = (run / "checkpoints").glob("step-*")
    file, manifest = checkpoint / name, checkpoint / "manifest.json"
    file.write_bytes(content)
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest.write_text(json.dumps(facts), encoding="utf-8")
    return file


TOUCH = "_args_:['touch MARKER']"
SMALL_TENSOR = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
OVERRIDES: dict[str, list[object]] = {
    "a callback of Hydra": [f"+hydra.callbacks.mine={{_target_:os.system,{TOUCH}}}"],
    "Hydra's launcher": ["hydra.mode=MULTIRUN", "hydra.launcher._target_=os.system", f"+hydra.launcher.{TOUCH}"],
    "Hydra's sweeper": ["hydra.mode=MULTIRUN", "hydra.sweeper._target_=os.system"],
    "another directory of options": ["hydra.searchpath=[file:///tmp/elsewhere]"],
    "another output of Hydra": ["hydra.run.dir=MARKER", "hydra.output_subdir=x"],
    "a directory elsewhere": ["run.dir=MARKER"],
    "what is no setting": ["--config-dir=/tmp"],
    "a callback of Hydra that its block list does not know": [
        "+hydra.callbacks.mine={_target_:builtins.open,file:MARKER,mode:w}"
    ],
    "a callback by way of a group": ["+dataset@hydra.callbacks.mine=text"],
    "what is not even text": [{"a": [1]}],
    "a key that is unknown": ["+model.block.attn.hook=1"],
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.every(3)
def test_hostile_overrides(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(run, "overrides.yaml", yaml.safe_dump([*SMALL, *OVERRIDES[name]]).encode())
    capsys.readouterr()
    assert train(f"resume={run}", "trainer.max_steps=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert "Hydra" not in name or "not the settings of a run" in error
    assert not (tmp_path / "MARKER").exists()
    assert not list((run / "checkpoints").glob("step-000003"))


def safetensors(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def nested_zip() -> bytes:
    """Ten million zeros in a kilobyte, twice."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(10_000_000))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", inner.getvalue())
        archive.writestr("archive/version", "3")
    return outer.getvalue()


HUGE = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 64]}
FORGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "shapes beyond all memory": ("model.safetensors", lambda: safetensors({"embed.weight": HUGE})),
    "a header of a terabyte": ("model.safetensors", lambda: struct.pack("<Q", 2**40) + bytes(64)),
    "other names": ("model.safetensors", lambda: safetensors({"w": SMALL_TENSOR})),
    "a zip in a zip": ("state.pt", nested_zip),
    "a state that is a list": ("state.pt", lambda: saved([1, 2])),
    "a state of other keys": ("state.pt", lambda: saved({"step": 2})),
}  # fmt: skip


def saved(value: object) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.every(3)
def test_forged_tensors(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, make = FORGED[name]
    file = forge(run, target, make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    capsys.readouterr()
    assert train(f"resume={run}", "trainer.max_steps=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert str(file.parent) in error or "the checkpoint's state is incomplete" in error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a\x00b", "..", "x" * 5000, "\ud800"])
def test_a_manifest_that_lists_files_elsewhere(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [checkpoint] = (run / "checkpoints").glob("step-*")
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"bytes": 0, "sha256": "0"}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert train(f"resume={run}", "trainer.max_steps=3") == 2
    assert "no complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"model": "../../../etc/passwd"}', '{"kind": "os.system"}'])
def test_a_forged_tokenizer(content: str, run: Path) -> None:
    file = forge(run, "tokenizer.json", content.encode())
    with pytest.raises(UserError, match=r"tokenizer"):
        tinyllm.load(run)
    assert file.read_text() == content
