"""Fixtures of several rooms: a program called as a person calls it, and a small text."""

import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from tests.support.training_runs import write_corpus

MODULES = {"runs": "tinyllm.programs.runs", "studio": "tinyllm.studio.program"}
"""Of the programs that are the ``__main__`` of a room."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting that chooses a small text."""
    return f"dataset.path={write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call of a program left."""

    code: int
    out: str
    err: str
    made: list[str]
    """What is in the current directory afterwards."""
    seconds: float
    """Processor time, which other programs on the machine do not change."""


Call = Callable[..., Answer]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a program's entry point in this process, in an empty directory."""
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(program: str, *arguments: str, **environ: str) -> Answer:
        capsys.readouterr()
        start = time.process_time()
        with (
            mock.patch.object(sys, "argv", [f"tinyllm-{program}", *arguments]),
            mock.patch.object(sys, "path", list(sys.path)),
            mock.patch.dict(os.environ, environ),
            pytest.raises(SystemExit) as end,
        ):
            importlib.import_module(MODULES.get(program, f"tinyllm.{program}")).main()
        seconds = time.process_time() - start
        shown = capsys.readouterr()
        made = sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
        code = end.value.code
        assert isinstance(code, int)
        return Answer(code=code, out=shown.out, err=shown.err, made=made, seconds=seconds)

    return run
