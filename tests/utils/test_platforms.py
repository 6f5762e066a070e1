"""Only one file uses what Windows lacks, and the programs run without it."""

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import sources
from tests.support.training_runs import SMALL, write_corpus
from tests.utils.hidden_posix import MODULES, OF_OS, OF_SIGNAL
from tinyllm.utils import locks, platforms

EXEMPT = ("utils/platforms.py",)


def test_only_platforms_uses_what_windows_lacks() -> None:
    """Other files must check first with ``hasattr(os, "setpgid")`` or handle the ImportError."""
    found = []
    for file in sorted((sources.ROOT / "tinyllm").rglob("*.py")):
        name, text = file.relative_to(sources.ROOT / "tinyllm").as_posix(), file.read_text(encoding="utf-8")
        if name in EXEMPT:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import) and any(one.name in MODULES for one in node.names):
                if "suppress(ImportError)" not in text:
                    found.append(f"{name}:{node.lineno} imports {node.names[0].name}")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                lacking = {"os": OF_OS, "signal": (*OF_SIGNAL, "SIGKILL")}.get(node.value.id, ())
                if node.attr in lacking and f'hasattr({node.value.id}, "' not in text:
                    found.append(f"{name}:{node.lineno} {node.value.id}.{node.attr}")
    assert found == []


@pytest.mark.slow
def test_the_programs_run_without_what_windows_lacks(tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', n_words=300)}")
    model = (*SMALL, *data, "trainer.max_steps=2", "trainer.checkpoint_every=1")
    again = ("resume=run", "trainer.max_steps=3", "trainer.sample_every=1", "trainer.sample_tokens=3")
    programs = [
        ("tinyllm.describe", *model),
        ("tinyllm.train", *model, "run.dir=run"),
        ("tinyllm.train", *again),
        ("tinyllm.generate", "run=run", "prompt=the", "max_new_tokens=3"),
        ("tinyllm.evaluate", "run=run"),
    ]
    words = [word for program in programs for word in (*program, "+")][:-1]
    command = [sys.executable, "-m", "tests.utils.hidden_posix", *words]
    environ = os.environ | {"PYTHONPATH": str(sources.ROOT), "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at step 3" in done.stdout and "val/loss" in done.stdout


@pytest.fixture
def windows_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitates Windows locks with flock. A locked byte cannot be locked again, not even by its holder."""

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 20 and count == 1, "the holder's name must stay readable"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(error.errno, "Permission denied") from error

    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))


def test_locks_on_windows(windows_locks: None, tmp_path: Path) -> None:
    path, waited = tmp_path / ".lock", []
    held = locks.try_lock(path)
    assert held is not None and locks.try_lock(path) is None and locks.is_held(path)
    locks.write_holder(held, "pid 1")
    assert path.read_text() == "pid 1"

    def free() -> None:
        waited.append(1)
        os.close(held)

    with locks.locked(path, free):
        assert waited == [1] and locks.is_held(path)
    assert not locks.is_held(path)


def test_without_locks_nothing_is_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.locked(tmp_path / ".lock", lambda: pytest.fail("must not wait")):
        assert not locks.is_held(tmp_path / ".lock")


CGROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "version 2": ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "250000 100000"}, 3),
    "version 2, above": ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
    "version 2, in a container": ("0::/\n", {"cpu.max": "200000 100000"}, 2),
    "version 2, the path of the host": ("0::/docker/x\n", {"cpu.max": "200000 100000"}, 2),
    "version 1": (
        "5:memory:/a\n4:cpu,cpuacct:/a\n",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        2,
    ),
    "version 1, no limit": (
        "4:cpu,cpuacct:/a\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        8,
    ),
    "a little": ("0::/\n", {"cpu.max": "1000 100000"}, 1),
    "more than there are": ("0::/\n", {"cpu.max": "9900000 100000"}, 8),
    "damaged": ("0\n::\n0::/\n", {"cpu.max": "much"}, 8),
    "none": ("", {}, 8),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_usable_cpus_respects_control_groups(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, files, wanted = CGROUPS[name]
    (tmp_path / "cgroup").write_text(groups)
    for path, text in files.items():
        (tmp_path / "fs" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / path).write_text(text + "\n")
    monkeypatch.setattr(platforms, "PROC", tmp_path / "cgroup")
    monkeypatch.setattr(platforms, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert platforms.usable_cpus() == wanted


def test_usable_cpus_without_an_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(platforms, "PROC", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert platforms.usable_cpus() == 5


def test_missing_flags_and_signals_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_NOFOLLOW")
    assert platforms.open_flags("O_RDONLY", "O_NOFOLLOW") == os.O_RDONLY | os.O_CLOEXEC
    assert platforms.signals("SIGINT", "SIGNONE") == (2,)
