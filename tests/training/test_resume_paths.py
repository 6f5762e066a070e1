"""A run is resumed in place, whichever way the run or its checkpoint is named."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.training_runs import SMALL, metrics, train, write_corpus

STEP = "step-000002"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text file and a finished run of two steps."""
    folder = tmp_path_factory.mktemp("made")
    text = write_corpus(folder / "words.txt")
    assert (
        train("dataset=text", f"dataset.path={text}", *SMALL, "trainer.max_steps=2", f"run.dir={folder / 'run'}") == 0
    )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.mark.parametrize(
    ("here", "named"),
    [
        ("run/checkpoints", STEP),
        ("run/checkpoints", "."),
        pytest.param("run/checkpoints", "..", marks=pytest.mark.slow),
        pytest.param(f"run/checkpoints/{STEP}", ".", marks=pytest.mark.slow),
        (f"run/checkpoints/{STEP}", ".."),
        ("run", "checkpoints"),
        pytest.param("run", f"checkpoints/{STEP}", marks=pytest.mark.slow),
        pytest.param("run", ".", marks=pytest.mark.slow),
        (".", "run"),
        (".", f"run/checkpoints/../checkpoints/{STEP}/"),
        pytest.param(".", "link", marks=pytest.mark.slow),
        (".", "newest"),
        pytest.param("elsewhere", "../newest", marks=pytest.mark.slow),
        (".", "~/run"),
        pytest.param(".", f"~/run/checkpoints/{STEP}", marks=pytest.mark.slow),
    ],
)
@pytest.mark.every(3)
def test_the_run_is_found(
    here: str, named: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = run.parent
    (home / "elsewhere").mkdir()
    (home / "link").symlink_to("run")
    (home / "newest").symlink_to(run / "checkpoints" / STEP)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / here)
    before = sorted(home.rglob("*"))
    capsys.readouterr()
    assert train(f"resume={named}") == 0  # complete: it says which run, and changes nothing
    out = capsys.readouterr().out
    shown = out.removeprefix("nothing to do: ").split(" is complete")[0].splitlines()[-1]
    assert Path(os.path.expanduser(shown)).resolve() == run.resolve()
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("place", [f"copy/{STEP}", f"other/checkpoints/{STEP}", f"{STEP}"])
def test_a_copied_checkpoint_belongs_to_no_run(
    place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copies" / place
    shutil.copytree(run / "checkpoints" / STEP, copy)
    monkeypatch.chdir(copy)
    before = sorted(tmp_path.rglob("*"))
    for named in (str(copy), "."):
        capsys.readouterr()
        assert train(f"resume={named}", "trainer.max_steps=3") == 2
        assert "error: the checkpoint does not belong to a run (resume=" in (error := capsys.readouterr().err)
        assert "set run.dir=" in error
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_copied_checkpoint_continues_in_a_new_directory(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "checkpoints" / STEP, tmp_path / "copy" / STEP)
    before = sorted(run.rglob("*"))
    assert train(f"resume={copy}", "trainer.max_steps=3", f"run.dir={tmp_path / 'new'}") == 0
    assert (tmp_path / "new" / "checkpoints" / "step-000003").is_dir()
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_a_run_whose_name_looks_like_an_interpolation_can_be_resumed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("dataset=text", f"dataset.path={made / 'words.txt'}", *SMALL, "trainer.max_steps=2", "resume=auto")
    assert train(*asked, "run.dir=q ${y}", "trainer.stop_after_steps=1") == 0
    assert train(*asked, "run.dir=q ${y}") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["q ${y}"]
    assert [one["step"] for one in metrics(tmp_path / "q ${y}")] == [1, 2]


def test_a_tilde_without_a_home_directory_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    assert train("resume=~nobody-of-that-name/run") == 2
    assert "no such home directory (resume=~nobody-of-that-name/run)" in capsys.readouterr().err
