"""No configuration, not even a malicious one, makes the program run foreign code."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import tinyllm
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.config.build import build
from tinyllm.config.targets import resolve_target
from tinyllm.errors import UserError
from tinyllm.utils.files import sha256

HOSTILE = {
    "os.system": ["touch MARKER"],
    "os.popen": ["touch MARKER"],
    "os.remove": ["VICTIM"],
    "os.rename": ["VICTIM", "MARKER"],
    "posix.system": ["touch MARKER"],
    "subprocess.run": [["touch", "MARKER"]],
    "subprocess.Popen": [["touch", "MARKER"]],
    "subprocess.check_output": [["touch", "MARKER"]],
    "shutil.rmtree": ["VICTIM"],
    "shutil.copyfile": ["VICTIM", "MARKER"],
    "builtins.open": ["MARKER", "w"],
    "builtins.exec": ["open('MARKER', 'w')"],
    "builtins.eval": ["open('MARKER', 'w')"],
    "builtins.__import__": ["antigravity"],
    "io.open": ["MARKER", "w"],
    "codecs.open": ["MARKER", "w"],
    "pathlib.Path.touch": ["MARKER"],
    "runpy.run_path": ["VICTIM"],
    "timeit.timeit": ["open('MARKER', 'w')"],
    "pdb.run": ["open('MARKER', 'w')"],
    "code.interact": [],
    "ctypes.CDLL": ["VICTIM"],
    "importlib.import_module": ["antigravity"],
    "pickle.loads": ["cos\nsystem\n(S'touch MARKER'\ntR."],
    "pickle.load": [],
    "shelve.open": ["MARKER"],
    "yaml.unsafe_load": ["!!python/object/apply:os.system ['touch MARKER']"],
    "torch.load": ["VICTIM"],
    "torch.hub.load": ["VICTIM", "model"],
    "torch.save": [[], "MARKER"],
    "torch.utils.cpp_extension.load_inline": ["x", "int main() {}"],
    "torch.serialization.load": ["VICTIM"],
    "numpy.load": ["VICTIM"],
    "numpy.savetxt": ["MARKER", [1]],
    "transformers.AutoModel.from_pretrained": ["VICTIM"],
    "urllib.request.urlretrieve": ["file:///etc/passwd", "MARKER"],
    "webbrowser.open": ["file:///etc/passwd"],
    "hydra.utils.instantiate": [{"_target_": "os.system", "_args_": ["touch MARKER"]}],
    # through our own modules
    "tinyllm.data.prepare.os.system": ["touch MARKER"],
    "tinyllm.data.prepare.shutil.rmtree": ["VICTIM"],
    "tinyllm.runs.checkpoint.shutil.rmtree": ["VICTIM"],
    "tinyllm.runs.checkpoint.torch.load": ["VICTIM"],
    "tinyllm.runs.directory.subprocess.run": [["touch", "MARKER"]],
    "tinyllm.runs.checkpoint.torch.hub.load": ["VICTIM", "model"],
    "tinyllm.nn.loss.torch.save": [[], "MARKER"],
    "torch.optim.adamw.torch.save": [[], "MARKER"],
    "torch.optim.os.system": ["touch MARKER"],
    "tinyllm.config.build.build": [{"_target_": "os.system"}],
    "tinyllm.train.main": [],
    "tinyllm.nn..os.system": ["touch MARKER"],
    ".os.system": ["touch MARKER"],
    "system": ["touch MARKER"],
    "": [],
    "tinyllm.nn.": [],
}
"""Target and arguments that would leave a trace if it were called."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a file that must not be removed, and without one that must not be created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VICTIM").write_text("here")
    return tmp_path


def unharmed(place: Path) -> bool:
    return not (place / "MARKER").exists() and (place / "VICTIM").read_text() == "here"


@pytest.mark.parametrize("target", HOSTILE)
def test_a_hostile_target_is_refused(target: str, place: Path) -> None:
    node = {"_target_": target, "_args_": HOSTILE[target]}
    for hostile in (node, {"_target_": "tinyllm.nn.norm.RMSNorm", "eps": node}, {"a": [{"b": node}]}):
        with pytest.raises(UserError, match=r"no such class|class not allowed|not a class or function"):
            build(hostile, path="model")
    assert unharmed(place)


def test_there_are_many_hostile_targets() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("node", ["model", "model.block.attn", "tokenizer", "dataset", "optimizer", "strategy"])
def test_a_hostile_target_on_the_command_line_is_refused(node: str, place: Path) -> None:
    with pytest.raises(UserError, match=rf"\({node}._target_=os.system\)"):
        tinyllm.compose(f"{node}._target_=os.system", f"+{node}._args_=['touch MARKER']")
    assert unharmed(place)


def test_a_hostile_target_in_an_unused_node_is_refused(place: Path) -> None:
    with pytest.raises(UserError):
        tinyllm.compose("+loss.extra={_target_:os.system,_args_:['touch MARKER']}")
    assert unharmed(place)


def test_only_optimizers_of_torch_may_be_named() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True}
    assert resolve_target(node, path="optimizer").__name__ == "SGD"
    for target in ("torch.optim.swa_utils.update_bn", "torch.optim.lr_scheduler.StepLR", "torch.optim.adam.Tensor"):
        with pytest.raises(UserError, match="not a class or function"):
            resolve_target(node | {"_target_": target}, path="optimizer")
    for path in ("model.norm", "schedule", "optimizer.lr", "x"):
        with pytest.raises(UserError, match=rf"class not allowed \({path}._target_=torch.optim.SGD\)"):
            resolve_target(node, path=path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    data = ("dataset=text", f"dataset.path={write_corpus(folder / 'words.txt', n_words=300)}")
    assert train(*SMALL, *data, "trainer.max_steps=1", f"run.dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.mark.parametrize("target", ["os.system", "torch.load", "tinyllm.runs.directory.subprocess.run"])
@pytest.mark.parametrize("node", ["model", "block"])
@pytest.mark.every(3)
def test_a_hostile_target_in_a_checkpoint_is_refused(target: str, node: str, trained: Path, place: Path) -> None:
    run = place / "run"
    shutil.copytree(trained, run)
    [checkpoint] = (run / "checkpoints").glob("step-*")
    file = checkpoint / "config.yaml"
    cfg = yaml.safe_load(file.read_text(encoding="utf-8"))
    hostile = {"_target_": target, "_args_": ["touch MARKER"]}
    if node == "model":
        cfg["model"] = cfg["model"] | hostile
    else:
        cfg["model"]["block"]["attn"] = hostile
    file.write_text(yaml.safe_dump(cfg), encoding="utf-8")
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["config.yaml"] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"class not allowed|not a class or function|no such class"):
        tinyllm.load(run)
    assert train(f"resume={run}", "trainer.max_steps=2") == 2
    assert unharmed(place)
