"""``benchmarks/gpu.py`` on the CPU with tiny sizes: it must work the first time someone lends a GPU."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.sources import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def results(tmp_path: Path, *arguments: str) -> dict[str, dict[str, object]]:
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(file), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))
    return measured


@pytest.mark.slow
def test_every_kind_of_part_gives_figures(tmp_path: Path) -> None:
    # One part of each kind; the others differ in settings only, and verify_resume has tests of its own.
    names = ("gpt2 eager", "gpt2 plain loop", "medium moe eager", "decode 1")
    found = results(tmp_path, "--only", "machine", *names)
    assert set(found) == {"machine", *names}
    assert [part["error"] for part in found.values() if "error" in part] == []
    for name in names:
        assert float(str(found[name]["tokens_per_s"])) > 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


def test_what_a_part_leaves_behind_becomes_a_line(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a hang of a grandchild, no figures and good ones, each in a process of its own."""
    bodies = {
        "crash": "import os, sys; print('about to', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)",
        "hang": "import subprocess; subprocess.run(['sleep', '60'])",
        "silence": "pass",
        "good": "print('{\"tokens_per_s\": 12345.6}')",
    }
    popen = subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda command, **how: popen([sys.executable, "-c", bodies[command[3]]], **how)
    )
    context = gpu.Context(device="cpu", tiny=True, work=tmp_path)
    found = {
        name: gpu.run_part(gpu.Part(name, 9, print), context, limit=0.7 if name == "hang" else 9) for name in bodies
    }
    assert found["crash"]["error"] == f"killed by signal {int(signal.SIGSEGV)}: about to"
    assert found["hang"]["error"] == "stopped after 1 s" and found["silence"]["error"] == "printed no figures"
    assert found["good"]["tokens_per_s"] == 12345.6
    lines = gpu.table(found).splitlines()
    assert len(lines) == 5 and "12,346" in lines[-1] and lines[1].startswith("crash")


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_a_line_and_the_others_run(tmp_path: Path) -> None:
    # A CUDA device that is not there makes parts fail; no time at all lets none begin.
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cuda:7", "--tiny", "--json", str(file)]
    subprocess.run([*command, "--only", "machine", "decode 1"], check=True, capture_output=True)
    failed = json.loads(file.read_text(encoding="utf-8"))
    assert list(failed) == ["machine", "decode 1"] and all(part["error"] for part in failed.values())
    hung = results(tmp_path, "--limit", "0.2", "--only", "machine", "decode 1")
    assert [part["error"] for part in hung.values()] == ["stopped after 0 s"] * 2
    late = results(tmp_path, "--minutes", "0", "--only", "machine", "resume")
    assert [part["error"] for part in late.values()] == ["not run: the time was over"] * 2
