"""The same study gives the same bytes: in another process, with another matplotlibrc, on any day."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import made_study as made
from tests.support.sources import ROOT
from tinyllm.studies.report import write_report

CODE = (
    "import sys\nfrom pathlib import Path\n"
    "from tests.support import made_study as made\nfrom tinyllm.studies.report import write_report\n"
    "write_report(made.study(arms=2, seeds=2), Path(sys.argv[1]))"
)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


@pytest.mark.slow
def test_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, elsewhere = (tmp_path / name for name in ("first", "again", "elsewhere"))
    write_report(made.study(arms=2, seeds=2), first)
    write_report(made.study(arms=1), again)
    write_report(made.study(arms=2, seeds=2), again)
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.fonttype: path\naxes.grid: False\n", encoding="utf-8")
    environ = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", CODE, str(elsewhere)], check=True, cwd=ROOT, env=environ)
    assert len(contents(first)) == 17
    assert contents(first) == contents(again) == contents(elsewhere)
    assert all(str(tmp_path).encode() not in text for text in contents(first).values())
