"""Damaged checkpoints, full disks and unusable directories: reported in one line, and nothing is lost."""

import ctypes
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.elsewhere import train_copy, tree
from tests.support.training_runs import SMALL, digest, metrics, train, write_corpus
from tinyllm.runs.checkpoint import find, steps_in


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of steps 4 and 6."""
    path = tmp_path_factory.mktemp("trained") / "run"
    options = ("trainer.max_steps=6", "trainer.checkpoint_every=2")
    assert train("dataset=text", corpus, *SMALL, *options, f"run.dir={path}") == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def zero_a_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:8192] = bytes(4096)
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a page of zeros": zero_a_page,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(os.urandom(300)),
    "a web page": lambda file: file.write_text("<html>404</html>"),
}


@pytest.mark.slow  # without a run around it: tests/runs/test_checkpoint.py
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    damage: str, name: str, run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "step-000006" / name
    DAMAGE[damage](file)
    assert train(f"resume={run}", "trainer.stop_after_steps=5") == 0
    shown = capsys.readouterr().out
    assert "checkpoint damaged" in shown and str(file) in shown and "using step-000004 instead" in shown
    assert set(steps_in(run / "checkpoints")) == {4, 5}  # the future that was abandoned is gone
    assert train(f"resume={run}") == 0
    assert digest(run) == digest(trained) and metrics(run) == metrics(trained)


def test_auto_does_not_start_over_when_all_checkpoints_are_damaged(
    run: Path, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        zero_a_page(path / "state.pt")
    before = tree(run)
    assert train("dataset=text", corpus, *SMALL, "resume=auto", f"run.dir={run}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no complete checkpoint") and len(error.splitlines()) == 1
    assert "step-000006" in error and "step-000004" in error and "sha256" in error
    assert tree(run) == before


@pytest.mark.parametrize(
    "hint", ["wrong", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gone", "a link to nothing"))]
)
def test_the_last_file_is_only_a_hint(hint: str, run: Path, trained: Path) -> None:
    pointer = run / "checkpoints" / "last"
    pointer.unlink()
    if hint == "wrong":
        pointer.write_text("step-000777\n")
    elif hint == "a link to nothing":
        pointer.symlink_to(run / "nothing")
    assert find(run).step == 6
    assert train(f"resume={run}", "trainer.max_steps=7") == 0
    assert (run / "checkpoints" / "last").read_text() == "step-000007\n"


def limit_files(size: int) -> None:
    """Simulate a full disk: writing beyond the limit fails as on a disk without space."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_with_its_last_checkpoint_intact(run: Path, trained: Path) -> None:
    size = (trained / "checkpoints" / "step-000006" / "state.pt").stat().st_size
    answer = train_copy(f"resume={run}", "trainer.max_steps=9", first=lambda: limit_files(size - 1000))
    assert answer.code == 2, answer
    assert answer.err.startswith("error: no space left while writing") and len(answer.err.splitlines()) == 1
    assert "step-000008" in answer.err and "MB are free" in answer.err
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert find(run, tell=lambda text: pytest.fail(text)).step == 6
    other = shutil.copytree(trained, run.parent / "other")
    for one in (run, other):
        assert train(f"resume={one}", "trainer.max_steps=9") == 0
    assert digest(run) == digest(other) and metrics(run) == metrics(other)


@pytest.mark.parametrize("asynchronous", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(asynchronous: str, run: Path) -> None:
    given = ("trainer.max_steps=9", f"checkpoint.asynchronous={asynchronous}")
    answer = train_copy(f"resume={run}", *given, fault="nospace@save:mid_write")
    assert answer.code == 2, answer
    assert answer.err.startswith("error: no space left while writing") and len(answer.err.splitlines()) == 1
    assert not list((run / "checkpoints").glob(".tmp-*")) and find(run).step == 6


@pytest.fixture
def becomes_read_only(run: Path, tmp_path: Path) -> Iterator[threading.Thread]:
    """Make the run's directory read-only as soon as it has a checkpoint of step 8.

    A mount with files open for writing cannot be remounted read-only. So a read-only view of the directory is made
    before anything is open, and laid over the directory in one step.
    """
    view = tmp_path / "view"
    view.mkdir()
    if subprocess.run(["mount", "--bind", run, view], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)

    def cover() -> None:
        end = time.monotonic() + 60
        while not (run / "checkpoints" / "step-000008").is_dir() and time.monotonic() < end:
            time.sleep(0.01)
        subprocess.run(["mount", "--bind", view, run], check=True)

    thread = threading.Thread(target=cover, daemon=True)
    thread.start()
    yield thread
    thread.join()
    subprocess.run(["umount", run], check=True)
    subprocess.run(["umount", view], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_disk_that_turns_read_only(asynchronous: str, run: Path, becomes_read_only: threading.Thread) -> None:
    answer = train_copy(f"resume={run}", "trainer.max_steps=100000", f"checkpoint.asynchronous={asynchronous}")
    becomes_read_only.join()
    assert answer.code == 2, answer
    assert len(answer.err.splitlines()) == 1 and "Read-only file system" in answer.err
    assert answer.err.startswith("error: cannot write") and str(run) in answer.err
    assert find(run, tell=lambda text: pytest.fail(text)).step >= 8


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory without write permission, whose parents anyone may enter."""
    path = Path(tempfile.mkdtemp())
    write_corpus(path / "words.txt")
    (path / "file.txt").write_text("in the way")
    path.chmod(0o555)
    yield path
    shutil.rmtree(path)


def without_privileges() -> None:
    """Drop root's right to ignore permissions, but stay root, who may own the imported files."""
    if os.getuid() == 0:
        version_3, this_process = 0x20080522, 0
        nothing = struct.pack("=6I", *6 * [0])  # effective, permitted and inheritable capabilities, twice 32 each
        assert ctypes.CDLL(None).capset(struct.pack("=Ii", version_3, this_process), nothing) == 0


def test_a_run_directory_that_cannot_be_made_is_refused_before_the_data_is_read(closed: Path) -> None:
    text = closed / "words.txt"
    for place, said in ((closed / "run", "Permission denied"), (closed / "file.txt" / "run", "not a directory")):
        answer = train_copy(
            "dataset=text", f"dataset.path={text}", *SMALL, f"run.dir={place}", first=without_privileges
        )
        assert answer.code == 2, answer
        assert answer.err.startswith("error: ") and "the run directory" in answer.err and said in answer.err
        assert len(answer.err.splitlines()) == 1 and "reading" not in answer.out
    assert sorted(path.name for path in closed.iterdir()) == ["file.txt", "words.txt"]


@pytest.mark.slow
def test_a_folder_without_access_is_named(closed: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o600)
    text = f"dataset.path={closed / 'words.txt'}"
    answer = train_copy("dataset=text", f"dataset.path={tmp_path / 'a.txt'}", *SMALL, first=without_privileges)
    assert answer.err.startswith("error: no such file or folder") and "no permission to enter" in answer.err
    answer = train_copy("dataset=text", text, *SMALL, f"run.dir={tmp_path / 'run'}", first=without_privileges)
    assert answer.err.startswith("error: the run directory cannot be created") and "Permission denied" in answer.err


@pytest.mark.slow
def test_runs_of_the_same_second_have_directories_of_their_own(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ("dataset=text", corpus, *SMALL, "trainer.max_steps=1", "run.name=../../out of here")
    for seed in (1, 2, 3):
        assert train(*shared, f"seed={seed}") == 0
    runs = [path.parent for path in tmp_path.rglob("run.json")]
    assert len(runs) == 3 and all(run.is_relative_to(tmp_path / "outputs") for run in runs)
    assert len({digest(run) for run in runs}) == 3
