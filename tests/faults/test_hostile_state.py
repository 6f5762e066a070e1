"""States and manifests of the wrong type but with valid checksums are refused with one line naming the file."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.faults.test_hostile_checkpoint import forge, saved
from tests.support.training_runs import SMALL, train
from tinyllm.errors import UserError
from tinyllm.optim.ema import EMA
from tinyllm.programs.resume import FACTS
from tinyllm.runs.checkpoint import find, verify
from tinyllm.runs.state_schema import read_checked
from tinyllm.training.state import TrainState

State = dict[str, Any]
WEIGHT = "embedding.weight"


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train("dataset=text", corpus, *SMALL, "trainer.max_steps=2", "ema.enabled=true", f"run.dir={run}") == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def without(key: str) -> Callable[[State], object]:
    return lambda state: state.pop(key)


def put(*path: Any, to: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        inside: Any = state
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = to

    return change


DAMAGE: dict[str, Callable[[State], object]] = {
    **{f"no {key}": without(key) for key in ("step", "tokens", "optimizer", "window", "rng", "skipped", "best_loss")},
    "the step of another horizon": put("step", to=0),
    "a step that is True": put("step", to=True),
    "a step that is text": put("step", to="2"),
    "negative tokens": put("tokens", to=-1),
    "flops of half a number": put("flops", to=1.5),
    "no seconds": put("seconds", to=None),
    "seconds that are no number": put("seconds", to=float("nan")),
    "a best loss of text": put("best_loss", to="1.0"),
    "a best loss without its step": put("best_loss", to=1.0),
    "a best step beyond": put("best_step", to=3),
    "more skipped than steps": put("skipped", to=3),
    "a window that is a list": put("window", to=[1.0, 2.0]),
    "a window without steps": put("window", to={"loss": 1.0}),
    "a window of tensors": put("window", to={"loss": torch.ones(3), "steps": 1.0}),
    "an optimizer that is a list": put("optimizer", to=[]),
    "an optimizer with a text": put("optimizer", WEIGHT, "exp_avg", to="x"),
    "an optimizer with a list": put("optimizer", WEIGHT, to=[1]),
    "a moment that one number claims to be": put("optimizer", WEIGHT, "exp_avg", to=torch.ones(1).expand(2**32)),
    "a moment without memory": put("optimizer", WEIGHT, "exp_avg", to=torch.ones(2**40, device="meta")),
    "a sparse moment": put("optimizer", WEIGHT, "exp_avg", to=torch.eye(3).to_sparse()),
    "a scaler of text": put("scaler", to={"scale": "1"}),
    "a scaler of zero": put(
        "scaler",
        to=dict(scale=0.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=200, _growth_tracker=0),
    ),
    "an average of text": put("average", to={"shadow": {WEIGHT: "x"}, "updates": 1}),
    "an average without updates": put("average", to={"shadow": {}}),
    "no generators": put("rng", to=[]),
    "a generator too short": put("rng", 0, "torch", to=torch.zeros(16, dtype=torch.uint8)),
    "a generator of floats": put("rng", 0, "torch", to=torch.zeros(5056)),
    "numpy's of another kind": put("rng", 0, "numpy", 0, to="PCG64"),
    "numpy's beyond its end": put("rng", 0, "numpy", 2, to=10**9),
    "Python's too short": put("rng", 0, "python", 1, to=[1, 2]),
    "Python's beyond its words": put("rng", 0, "python", 1, to=[2**40] * 625),
    "a record owed of text": put("owed", to={"train/loss": "1.0"}),
    "loggers that are a list": put("loggers", to=[1]),
    "a logger's list": put("loggers", to={"wandb": {"id": [3]}}),
    "a logger's nan": put("loggers", to={"tensorboard": {"started": math.nan}}),
}
OF_THE_MODEL: dict[str, Callable[[State], object]] = {
    "an optimizer of nothing": put("optimizer", to={}),
    "an optimizer without a parameter": lambda state: state["optimizer"].pop(WEIGHT),
    "a parameter without its moments": put("optimizer", WEIGHT, to={}),
    "a moment of another shape": put("optimizer", WEIGHT, "exp_avg", to=torch.zeros(3, 32)),
    "a vector's moment of another length": put("optimizer", "norm.weight", "exp_avg", to=torch.zeros(3)),
    "another optimizer's moments": put("optimizer", "norm.weight", to={"m": torch.zeros(32)}),
    "a moment's step that is no number": put("optimizer", "norm.weight", "step", to=torch.tensor(float("nan"))),
    "an average of another shape": put("average", "shadow", "norm.weight", to=torch.zeros(3)),
    "an average without a parameter": lambda state: state["average"]["shadow"].pop("norm.weight"),
}


@pytest.fixture(scope="module")
def state(trained: Path) -> State:
    return read_checked(find(trained))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_state_field_of_the_wrong_type_is_refused(name: str, run: Path, state: State) -> None:
    changed = copy.deepcopy(state)
    DAMAGE[name](changed)
    file = forge(run, "state.pt", saved(changed))
    with pytest.raises(UserError, match=r"the checkpoint's state is (damaged|incomplete)") as caught:
        read_checked(find(run))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_the_state_of_another_model_is_refused(name: str, trained: Path, state: State) -> None:
    model, _ = tinyllm.load(trained)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": list(named.values()), "names": list(named)}])
    average = EMA(model, decay=0.9, update_every=1, start_step=0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    mine = TrainState(model=model, optimizer=optimizer, scaler=scaler, average=average)
    mine.load_state_dict(copy.deepcopy(state))
    changed = copy.deepcopy(state)
    OF_THE_MODEL[name](changed)
    with pytest.raises(UserError, match=r"its file") as caught:
        mine.load_state_dict(changed, file="its file")
    assert str(caught.value).startswith(("the checkpoint's state is damaged", "the optimizer state does not match"))


@pytest.mark.parametrize("name", ["an optimizer without a parameter", "no seconds"])
def test_a_resume_is_refused(name: str, run: Path, state: State, capsys: pytest.CaptureFixture[str]) -> None:
    changed = copy.deepcopy(state)
    (OF_THE_MODEL | DAMAGE)[name](changed)
    file = forge(run, "state.pt", saved(changed))
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    capsys.readouterr()
    assert train(f"resume={run}", "trainer.max_steps=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and str(file) in error
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before


MANIFESTS: dict[str, Callable[[State], object]] = {
    "a step that is text": put("step", to="x"),
    "the step of another checkpoint": put("step", to=7),
    "no horizon": without("max_steps"),
    "a horizon of 0 steps": put("max_steps", to=0),
    "a horizon of text": put("max_steps", to="2"),
    "no precision": without("precision"),
    "a precision that is a number": put("precision", to=16),
    "no ranks": put("world_size", to=0),
    "writers beyond all memory": put("writers", to=10**12),
    "writers of text": put("writers", to="two"),
    "no data": without("data"),
    "data of a list": put("data", to=["a"]),
    "data without a split": lambda manifest: manifest["data"].pop("val"),
    "no files": without("files"),
    "files that are a list": put("files", to=["state.pt"]),
    "a file without facts": put("files", "state.pt", to=None),
    "a file of a negative size": put("files", "state.pt", to={"bytes": -1, "sha256": ""}),
    "a file without a digest": put("files", "state.pt", to={"bytes": 1}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_the_wrong_type_is_refused(name: str, run: Path) -> None:
    [checkpoint] = (run / "checkpoints").glob("step-*")
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    MANIFESTS[name](manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"incomplete checkpoint|disagree about the step|damaged|missing") as caught:
        verify(checkpoint).require(*FACTS)
    assert str(checkpoint) in str(caught.value)


def test_a_checkpoint_under_the_name_of_another_step(run: Path) -> None:
    [checkpoint] = (run / "checkpoints").glob("step-*")
    with pytest.raises(UserError, match="the manifest says step 2"):
        verify(checkpoint.rename(checkpoint.with_name("step-000009")))
