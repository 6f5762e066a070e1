"""The wheel in an environment of its own, used from a directory that is not the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import readme
from tests.support.sources import ROOT, tracked
from tests.test_imports import SCRIPTS

pytestmark = pytest.mark.slow
SMALL = [
    "model.d_model=32",
    "model.n_layers=2",
    "trainer.batch_size=4",
    "trainer.seq_len=32",
    "trainer.sample_tokens=20",
    "trainer.eval_tokens=2048",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, and the wheel that was built from it."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT)], check=True)
    return dist


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin directory of a fresh environment with nothing but the wheel and what it asks for."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    [wheel] = built.glob("*.whl")
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    yield place / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program: Path | str, *arguments: str) -> str:
    """Standard output of a program that ends well; nothing of the checkout is importable."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_what_is_packed(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    [sdist] = built.glob("*.tar.gz")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in tracked() if path.is_relative_to(ROOT / "tinyllm")}
    sources = {name.removeprefix("tinyllm/plugins/") for name in sources}
    options = {f"tinyllm/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    files = {name for name in packed if ".dist-info/" not in name}
    assert files == sources | options
    assert "tinyllm/py.typed" in files
    [metadata] = [name for name in packed if name.endswith(".dist-info/METADATA")]
    assert "License-File: LICENSE" in zipfile.ZipFile(wheel).read(metadata).decode()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "conf/train.yaml", "tests/conftest.py"} <= names
    assert not any(name.startswith(("outputs/", ".venv", "docs/options.md/")) for name in names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_every_console_script(installed: Path, elsewhere: Path, script: str) -> None:
    module = script.removeprefix("tinyllm-").replace("-", "_")
    assert f"python -m tinyllm.{module}" in run(installed / script, "--help")


def test_train_generate_and_evaluate(installed: Path, elsewhere: Path) -> None:
    shown = run(installed / "tinyllm-train", "trainer.max_steps=5", "run.dir=first run", *SMALL)
    assert "finished at step 5" in shown
    assert (elsewhere / "first run" / "curves.png").is_file()
    # The commands that the run itself prints, as a person copies them.
    commands = [line.split(": ", 1)[1] for line in shown.splitlines() if " -m tinyllm." in line]
    assert [command.split()[2] for command in commands] == [
        "tinyllm.generate",
        "tinyllm.evaluate",
        "tinyllm.train",
    ]
    texts = [run("bash", "-c", command) for command in commands]
    assert texts[0].strip()
    assert "loss" in texts[1]
    assert "finished at step 10" in texts[2]


def test_the_readmes_python_example(installed: Path, elsewhere: Path) -> None:
    run(installed / "tinyllm-train", "trainer.max_steps=2", "run.dir=outputs/mine", *SMALL)
    assert run(installed / "python", "-c", readme.block("python")).startswith("The function returns")


def test_the_readmes_own_attention(installed: Path, elsewhere: Path) -> None:
    (elsewhere / "my_attention.py").write_text(readme.block("attention class"), encoding="utf-8")
    (elsewhere / "my_conf" / "attn").mkdir(parents=True)
    (elsewhere / "my_conf" / "attn" / "gated.yaml").write_text(readme.block("attention yaml"), encoding="utf-8")
    command = readme.block("attention command").strip().replace(".venv/bin/python", str(installed / "python"))
    shown = run("bash", "-c", " ".join([command, "trainer.max_steps=5", "run.dir=mine", *SMALL]))
    assert "finished at step 5" in shown
    config = (elsewhere / "mine" / "config.yaml").read_text(encoding="utf-8")
    assert "my_attention.GatedMHA" in config
    commands = [line.split(": ", 1)[1] for line in shown.splitlines() if " -m tinyllm." in line]
    assert run("bash", "-c", commands[0]).strip()
    # A console script does not look for modules where it is called from; with --config-dir it has to.
    again = run(installed / "tinyllm-train", "--config-dir", "my_conf", "attn=gated", "trainer.max_steps=2", *SMALL)
    assert "finished at step 2" in again
