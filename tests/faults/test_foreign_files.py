"""Untrusted runs, studies, models and layers: nothing in them is executed, and no file outside is read."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

import tinyllm
import tinyllm.evaluate
import tinyllm.export
import tinyllm.generate
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.config.saved import saved_settings
from tinyllm.errors import UserError
from tinyllm.interop.architecture import architecture_of, settings_of
from tinyllm.programs.builders import build_model
from tinyllm.programs.load_model import open_saved
from tinyllm.studies.compare.arms import read_study
from tinyllm.utils.files import sha256

PROGRAMS = {name: getattr(tinyllm, name).main for name in ("generate", "evaluate", "export")}
EVIL = "import pathlib; pathlib.Path({!r}).touch()"
LITERAL = "words ${oc.env:HOME} ${x.txt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data path looks like an interpolation; resolving it twice would not find the data."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / LITERAL, n_words=300)
    with mock.patch.dict(os.environ, {"RATE": "0.002", "STEPS": "2"}):
        decoded = ('optimizer.lr="${oc.decode:${oc.env:RATE}}"', "trainer.max_steps=${oc.env:STEPS}")
        data = ("dataset=text", f"dataset.path={folder / LITERAL}", "tokenizer=byte")
        more = ("trainer.sample_every=9", "trainer.sample_prompt=${", f"run.dir={folder / 'run'}")
        assert train(*SMALL, *data, *decoded, *more) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a new working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


def forge(run: Path, name: str, change: Any) -> None:
    """Edit a yaml file of run and checkpoint, and update the manifest."""
    [checkpoint] = (run / "checkpoints").glob("step-*")
    content = change(yaml.safe_load((checkpoint / name).read_text(encoding="utf-8")))
    for place in (checkpoint, run):
        (place / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    manifest = checkpoint / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    file = checkpoint / name
    facts["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest.write_text(json.dumps(facts), encoding="utf-8")


def call(program: str, *arguments: str) -> int:
    """The exit code of a program that runs in this process."""
    argv = mock.patch.object(sys, "argv", [program, *arguments])
    with argv, mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
        PROGRAMS[program]()
    return int(end.value.code or 0)


@pytest.mark.slow
def test_text_like_an_interpolation_stays_text_and_the_environment_is_read_once(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(f"resume={run}", "trainer.max_steps=3") == 0  # RATE and STEPS are not set any more
    out, error = capfd.readouterr()
    assert error == "" and "optimizer.lr" not in out
    assert call("evaluate", f"run={run}") == 0
    assert call("generate", f"run={run}", "max_new_tokens=1", "prompt=${") == 0
    saved = open_saved(run).cfg
    assert saved.dataset.path.endswith(LITERAL) and saved.optimizer.lr == 0.002 and saved.trainer.sample_prompt == "${"
    assert call("evaluate", f"run={run}", "dataset=text", f"dataset.path={saved.dataset.path}") == 0


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("model.dropout", "tinyllm.loggers.wandb_client.Background"),
        pytest.param("trainer.max_steps", "tinyllm.loggers.wandb_client.Background", marks=pytest.mark.slow),
        pytest.param("tokenizer", "tinyllm.nn.norm.RMSNorm", marks=pytest.mark.slow),
    ],
)
def test_a_class_that_no_option_file_names_is_refused(
    key: str, target: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(EVIL.format(str(tmp_path / "MARKER")))
    hostile = {"_target_": target, "script": str(tmp_path / "evil.py"), "environ": {}}

    def change(cfg: dict[str, Any]) -> dict[str, Any]:
        *above, name = key.split(".")
        node = cfg
        for one in above:
            node = node[one]
        node[name] = hostile
        return cfg

    path = yaml.safe_load((run / "config.yaml").read_text())["dataset"]["path"]
    data = ("dataset=text", f"dataset.path={path}", "tokenizer=byte", "trainer.max_steps=1")
    forge(run, "config.yaml", change)
    capfd.readouterr()
    ended = [
        call("generate", f"run={run}"),
        call("evaluate", f"run={run}"),
        call("export", f"run={run}", "out=exported"),
        train(f"resume={run}", "trainer.max_steps=3"),
        train(*SMALL, *data, f"init_from={run}", "run.dir=other"),
    ]
    error = capfd.readouterr().err
    assert ended == [2] * len(ended)
    assert error.count(f"class not allowed ({key}._target_={target}, ") == 5, error
    assert not (tmp_path / "MARKER").exists() and not (tmp_path / "exported").exists()


HOSTILE_SETTINGS = (
    *("experiment=../../../x", "experiment=/x", "attn=../ffn/gelu", "attn=a/../b", "attn=./mha", "attn={a:1}"),
    *("attn=../x,mha", "attn/deep=mha", "attn@model.norm=mha", "attn@hydra.launcher=mha"),
    *("+attn=mha", "++attn=mha", "+experiment=x", "~attn", "~model.block", "hydra=x", "hydra.run.dir=x"),
    *("hydra/launcher=joblib", "+hydra.callbacks.x={_target_:a.B}", "++hydra.callbacks.x._target_=a.B", "+hydra@x=y"),
    *("--config-dir=x", "-m", "--", "x", "", "=1", "model.x.$y=1", "model.d_ff=8 model.n_layers=1\n--help"),
    *("model.d_ff=${oc.env:HOME}x${y}", "seed=$\\{oc.env:HOME\\}", "seed=${hydra.job.name}", "seed=[{a:${now:x}}]"),
    *(f"seed={'[' * 3000}{']' * 3000}", f"seed={'{a:' * 500}1{'}' * 500}", "seed=" + "choice(" * 999 + "1" + ")" * 999),
    f"seed=[{'1,' * 100_000}1]",
)


@pytest.mark.parametrize("setting", HOSTILE_SETTINGS)
def test_settings_in_a_file_may_only_choose_options_and_set_keys(setting: str, tmp_path: Path) -> None:
    files = tmp_path / "overrides.yaml", tmp_path / "study.yaml"
    (tmp_path / "config.yaml").write_text("model: {d_model: 8}")
    files[0].write_text(yaml.safe_dump(["model.d_model=8", setting]))
    with pytest.raises(UserError, match=r"^not the settings of a run \(") as refused:
        saved_settings(files[0], config=tmp_path / "config.yaml", config_dir=None)
    assert len(str(refused.value).splitlines()) == 1
    for content, where in (({"settings": [setting]}, "all arms"), ({"arms": {"one": [setting]}}, "the arm one")):
        files[1].write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=f"^not a setting for {where}"):
            read_study(files[1])


def test_the_number_of_settings_in_a_file_is_bounded(tmp_path: Path) -> None:
    file, config = tmp_path / "overrides.yaml", tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(["seed=1"] * 4_001))
    with pytest.raises(UserError, match="more than 4,000 values"):
        saved_settings(file, config=config, config_dir=None)
    file.write_text(yaml.safe_dump(written := [f"""trainer.sample_prompt="{"[a," * 5000}\\"[\"""", "seed=1"]))
    assert saved_settings(file, config=config, config_dir=None) == written


@pytest.mark.parametrize("setting", ["experiment=../../x", "+hydra.callbacks.x={_target_:a.B}", "run.dir=x", "--help"])
def test_forged_settings_of_a_run_are_refused(
    setting: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    forge(run, "overrides.yaml", lambda settings: [*settings, setting])
    assert train(f"resume={run}", "trainer.max_steps=3") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: not the settings of a run (") and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_settings_that_a_study_may_have(tmp_path: Path) -> None:
    shared = ["attn=mha,gqa", "model.d_ff=${model.d_model}", "+model.block.attn.bias=true", "dataset.path=${x}"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"settings": shared, "arms": {"one": ["ffn=swiglu"]}}))
    assert read_study(tmp_path / "study.yaml")["settings"][:3] == shared[:3]


@pytest.mark.parametrize("option", ["../../../x", "/x", "mha,gqa", "${oc.env:HOME}", "{_target_:a.B}", "mha model.x=1"])
def test_an_attention_of_written_out_layers_is_an_option(option: str, tmp_path: Path) -> None:
    layer = {"attn": option, "n_head": 4, "moe": False, "up_dim": 8, "non_linearity": "relu"}
    with pytest.raises(UserError, match=r"model.layers.json:1"):
        tinyllm.compose("layers=jsonl", "model.n_layers=1", f"model.layers.json={json.dumps(layer)}")
    kinds = f"model.layers.kinds={{a:'attn={option}'}}"
    with pytest.raises(UserError):
        tinyllm.compose("layers=pattern", "model.layers.pattern=[a]", kinds)


def test_what_config_json_says_becomes_numbers_and_names_only() -> None:
    cfg = tinyllm.compose("model=pico", "ffn=swiglu", "model.vocab_size=8")
    arch = architecture_of(build_model(cfg, vocab_size=8, seed=0, device=torch.device("meta"), allow=frozenset()))
    settings_of(arch)
    for value in ("{_target_:a.B}", "${oc.env:HOME}", "1 model.x=2", [1], {"a": 1}, "", "a,b"):
        for node, key in ((arch.model, "model.norm.eps"), (arch.layers[0], "model.block.ffn.d_ff")):
            was, node[key] = node[key], value
            with pytest.raises(UserError, match=r"invalid value in config.json \(model\."):
                settings_of(arch)
            node[key] = was
    settings_of(arch)
