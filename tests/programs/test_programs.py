"""The programs as processes: what they import, what they print, how errors and multiruns end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import tinyllm
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL

HEAVY = ("torch", "numpy", "transformers", "wandb", "matplotlib", "tokenizers", "tinyllm.programs.train")
WITHOUT_RUNNING = """
import sys
from tinyllm.{program} import main
sys.argv = ["tinyllm-{program}", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def process(*command: str, **keywords: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command with this Python and wait for it."""
    environ = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environ, **keywords
    )


@pytest.mark.parametrize(
    ("program", "flags", "shown"),
    [
        ("train", ["--cfg", "job", "--resolve"], "max_seq_len: 128"),
        ("train", ["attn=gqa", "--info", "defaults-tree", "model=tiny"], "attn: gqa"),
        ("train", ["--help"], "key=value"),
        ("generate", ["--cfg", "job"], "temperature: 0.8"),
        ("describe", ["--cfg", "job", "--package", "optimizer"], "weight_decay: 0.1"),
    ],
)
def test_showing_the_configuration_imports_nothing_heavy(
    program: str, flags: list[str], shown: str, tmp_path: Path
) -> None:
    code = WITHOUT_RUNNING.format(program=program, arguments=flags, heavy=HEAVY)
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stderr.split() == []
    assert list(tmp_path.iterdir()) == []


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = process("-m", "tinyllm.train", "model.d_modle=64", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: unknown key (model.d_modle=64): did you mean model.d_model?\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_and_hydra_full_error_add_the_traceback(call: Call) -> None:
    plain = call("train", "trainer.max_steps=-1")
    asked = call("train", "trainer.max_steps=-1", "debug=true")
    environ = call("train", "trainer.max_steps=-1", HYDRA_FULL_ERROR="1")
    for answer in (asked, environ):
        assert answer.code == 2
        assert "Traceback (most recent call last)" in answer.err
        assert "tinyllm.errors.UserError" in answer.err
        assert answer.err.splitlines()[-1] == plain.err.strip()
    assert "Traceback" not in plain.err


def test_an_unexpected_error_is_one_line_with_its_source_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("on\ntwo lines")

    monkeypatch.setattr("tinyllm.programs.train.make_plan", broken)
    answer = call("train")
    assert answer.code == 1
    [line] = answer.err.splitlines()
    assert line.startswith("error: ZeroDivisionError: on two lines (test_programs.py:")
    assert "HYDRA_FULL_ERROR=1" in line
    assert "Traceback" in call("train", "debug=true").err


def test_version_prints_the_version_of_tinyllm(call: Call) -> None:
    assert call("train", "--version").out == f"tinyllm {tinyllm.__version__}\n"


def test_flags_and_settings_can_be_in_any_order(call: Call) -> None:
    orders = (
        ["--cfg", "job", "seed=3", "model.d_model=64"],
        ["seed=3", "--cfg=job", "model.d_model=64"],
        ["seed=3", "model.d_model=64", "-c", "job"],
    )
    shown = {call("train", *order).out for order in orders}
    assert len(shown) == 1
    assert "seed: 3" in shown.pop()


@pytest.mark.slow
def test_a_multirun_of_another_program_continues_after_a_failed_job(call: Call, inputs: Path) -> None:
    answer = call("evaluate", "-m", f"run={inputs / 'run'}", "split=val,test")
    assert answer.code == 2
    error, job = answer.err.splitlines()[-2:]
    assert error.startswith("error: the data set has no test split (split=test)")
    assert job.startswith("in job 1: ") and job.endswith("split=test")
    assert answer.out.splitlines()[-1] == "2 jobs, 1 failed: 1"


def test_a_sweep_refuses_bad_settings_before_its_first_job(call: Call) -> None:
    answer = call("train", "-m", "seed=1,2", "model.d_modle=3")
    assert answer.code == 2
    assert answer.err.startswith("error: unknown key (model.d_modle=3): did you mean model.d_model?")


WITHOUT_PRIVILEGE = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root pass by file modes
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):
        sys.exit("cannot drop the capability")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
def test_an_unwritable_output_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir(mode=0o555)
    probe = "import pathlib; pathlib.Path('outputs/x').touch()"
    if "Permission denied" not in process("-c", WITHOUT_PRIVILEGE, "-c", probe, cwd=tmp_path).stderr:
        pytest.skip("here a file mode does not keep a process from writing")
    (tmp_path / "words.txt").write_text("the cat sat on the mat " * 100)
    settings = (*SMALL, "dataset=text", "dataset.path=words.txt", "trainer.max_steps=1")
    program = ("-c", WITHOUT_PRIVILEGE, "-m", "tinyllm.train")
    done = process(*program, *settings, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: the run directory cannot be created (run.dir=outputs/")
    assert "Permission denied" in line
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_program_composes_once(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would compose everything twice, the first time only to read its own mode."""
    composed: list[str] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, config_name: str, *rest: Any, **more: Any) -> Any:
        composed.append(config_name)
        return load(self, config_name, *rest, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert call("describe", "model=pico").code == 0
    assert composed.count("describe") == 1
