"""``benchmarks/gpu.py`` on the CPU with tiny sizes: it must work the first time someone lends a GPU."""

import json
import subprocess
import sys
from pathlib import Path

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
    found = results(tmp_path, "--only", "machine", "gpt2 eager", "gpt2 plain", "medium moe", "decode 1")
    assert set(found) == {"machine", "gpt2 eager", "gpt2 plain loop", "medium moe", "decode 1"}
    assert [part["error"] for part in found.values() if "error" in part] == []
    for name in ("gpt2 eager", "gpt2 plain loop", "medium moe", "decode 1"):
        assert float(str(found[name]["tokens_per_s"])) > 0


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_a_line_and_the_others_run(tmp_path: Path) -> None:
    # A CUDA device that is not there makes parts fail; no time at all lets none begin.
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cuda:7", "--tiny", "--json", str(file)]
    subprocess.run([*command, "--only", "machine", "decode 1"], check=True, capture_output=True)
    failed = json.loads(file.read_text(encoding="utf-8"))
    assert list(failed) == ["machine", "decode 1"] and all(part["error"] for part in failed.values())
    late = results(tmp_path, "--minutes", "0", "--only", "machine", "resume")
    assert [part["error"] for part in late.values()] == ["not run: the time was over"] * 2
