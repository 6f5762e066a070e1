"""How many files a newcomer passes from the command line to the end of the first optimizer step."""

from pathlib import Path

import pytest

from tests.support.files_passed import files_passed
from tests.support.training_runs import SMALL, train, write_corpus

MOST, MOST_CALLING_ON = 129, 73
"""As measured; 112 and 70 before there were mixtures, conversations and prompts, whose checks every run passes, and
before runs kept their samples and notes (``loggers/event_log.py``); 127 before there were kernels for training.

A file on the way from the command to the first step is a file that a newcomer reads: nothing may be added without
need.
"""


@pytest.mark.slow
def test_a_run_passes_few_files(tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}")
    assert train(*SMALL, *data, "trainer.max_steps=1", f"run.dir={tmp_path / 'run'}") == 0  # fills the token cache
    files = files_passed(["attn=mla", *SMALL, *data])
    assert next(iter(files)) == "train.py" and "programs/run_plan.py" in files
    assert len(files) <= MOST
    assert sum(files.values()) <= MOST_CALLING_ON
