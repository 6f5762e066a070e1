"""Changes around a run: data move, clocks stop, caches and records come from others."""

import errno
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.training_runs import SMALL, metrics, train, write_corpus
from tinyllm.data.prepare import cache_root
from tinyllm.errors import UserError
from tinyllm.studies.sweep.job_record import JobRecord, read_record
from tinyllm.utils.files import is_trusted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run, stopped after one of three steps, whose path to the text is relative."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "words.txt")
    before = Path.cwd()
    os.chdir(folder)
    options = ("trainer.max_steps=3", "trainer.stop_after_steps=1", "run.dir=run")
    assert train("dataset=text", "dataset.path=words.txt", *SMALL, *options) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "place"))


@pytest.mark.slow
def test_moved_data_are_the_same_data(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(f"resume={place / 'run'}") == 2
    error = capsys.readouterr().err
    assert "words.txt" in error and "relative paths are resolved from the current directory" in error
    assert "set dataset.path=… to where the same data is now" in error
    moved = (place / "words.txt").rename(tmp_path / "moved.txt")
    other = write_corpus(tmp_path / "other.txt", seed=5)
    assert train(f"resume={place / 'run'}", f"dataset.path={other}") == 2
    assert "differs from the one the run was trained with" in capsys.readouterr().err
    assert train(f"resume={place / 'run'}", f"dataset.path={moved}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={place / 'run'}") == 0  # the run knows the new place now
    assert [one["step"] for one in metrics(place / "run")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("ticks", [0.0, -1.0], ids=["stands still", "goes back"])
def test_a_clock_that_stands_still(ticks: float, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1e6, ticks) if ticks else itertools.repeat(1e6)
    for name in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(time, name, lambda: next(clock))
    data = ("dataset=text", f"dataset.path={made / 'words.txt'}")
    options = ("trainer.max_steps=2", "trainer.eval_every=1", "trainer.profile.steps=0")
    assert train(*data, *SMALL, *options, f"run.dir={tmp_path / 'run'}") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records] == [1, 2]
    assert not any(key.startswith("speed/") for one in records for key in one)
    assert all(one["seconds"] >= 0 for one in records)


@pytest.mark.slow
def test_a_name_too_long_for_a_directory(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    data = ("dataset=text", f"dataset.path={made / 'words.txt'}")
    for setting in (f"run.name={'x' * 300}", f"run.dir={'y' * 300}", f"run.dir={'z' * 300}/run"):
        assert train(*data, *SMALL, setting) == 2
        assert "directory name too long (run." in capsys.readouterr().err
        assert not (tmp_path / "cache" / "tokens").exists()  # refused before the data are prepared


RECORD = {"number": 0, "name": "000_x", "overrides": ["seed=1"], "swept": ["seed=1"]}
STRANGE = {
    "a name elsewhere": {"name": "../../x"},
    "an absolute name": {"name": "/tmp/x"},
    "the name of another job": {"name": "001_x"},
    "a name that is a number": {"name": 1},
    "a number of text": {"number": "0"},
    "overrides that are text": {"overrides": "seed=1"},
    "overrides that are numbers": {"overrides": [1]},
    "a status of its own": {"status": "owned"},
    "a status that is a list": {"status": ["finished"]},
    "a loss of text": {"val_loss": "low"},
    "a code that is no number": {"code": None},
    "a key of its own": {"hook": 1},
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_damaged_job_record_is_reported(name: str, tmp_path: Path) -> None:
    file = tmp_path / "000_x.json"
    file.write_text(json.dumps(RECORD))
    assert read_record(file) == JobRecord(**RECORD)
    file.write_text(json.dumps(RECORD | STRANGE[name]))
    with pytest.raises(UserError, match="invalid job record"):
        read_record(file)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_planted_by_another_user_is_not_used(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TINYLLM_CACHE", str(cache))
    data = ("dataset=text", f"dataset.path={made / 'words.txt'}")
    assert train(*data, *SMALL, "trainer.max_steps=1", f"run.dir={tmp_path / 'one'}") == 0
    [folder] = [one for one in (cache / "tokens").iterdir() if one.is_dir()]
    planted = folder / "train.bin"
    os.chown(planted, 12345, 12345)
    [memo] = (cache / "sources").iterdir()
    os.chown(memo, 12345, 12345)
    assert not is_trusted(planted, root=cache) and not is_trusted(memo, root=cache)
    capsys.readouterr()
    assert train(*data, *SMALL, "trainer.max_steps=1", f"run.dir={tmp_path / 'two'}") == 0
    assert "belongs to a different user) and was rebuilt" in capsys.readouterr().out
    assert is_trusted(folder / "train.bin", root=cache)
    os.chown(cache / "tokens", 12345, 12345)
    os.chown(folder / "train.bin", 12345, 12345)
    assert is_trusted(folder / "train.bin", root=cache / "tokens")  # whoever keeps the cache is trusted


def test_a_path_that_is_not_utf8(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = place / os.fsdecode(b"n\xff")
    data = ("dataset=text", "dataset.path=place/words.txt")
    assert train(*data, *SMALL, f"run.dir={odd}") == 2
    assert "the path is not UTF-8 (run.dir=" in capsys.readouterr().err and not odd.exists()
    shutil.copytree(place / "run", odd)
    assert train(f"resume={odd}", "dataset.path=place/words.txt") == 2
    error = capsys.readouterr().err
    assert "the path is not UTF-8" in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_read_only_run_continues_in_another_directory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.open

    def read_only(path: object, flags: int, *rest: object, **more: object) -> int:
        if str(path).startswith(str(place / "run")) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    moved = "dataset.path=place/words.txt"
    assert train(f"resume={place / 'run'}", moved) == 2
    assert "the run directory cannot be written (run.dir=" in capsys.readouterr().err
    assert train(f"resume={place / 'run'}", moved, f"run.dir={tmp_path / 'new'}", "trainer.stop_after_steps=2") == 0


def test_without_a_home_directory_the_cache_folder_must_be_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(*of: object) -> NoReturn:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "TINYLLM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^no folder for the token cache \(~/.cache/tinyllm\): set .*TINYLLM_CACHE"):
        cache_root()
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
