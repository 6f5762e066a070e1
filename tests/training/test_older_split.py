"""Runs made under version 1 of the split's rules keep their split."""

from pathlib import Path

import pytest

import tinyllm
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.errors import UserError
from tinyllm.programs.builders import open_data
from tinyllm.programs.evaluate import evaluate_run
from tinyllm.runs.checkpoint import find


@pytest.mark.slow
def test_an_older_run_is_resumed_and_evaluated_on_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With two documents: validation was half of the data then and is a tenth now."""
    books = tmp_path / "books"
    books.mkdir()
    for seed in (1, 2):
        write_corpus(books / f"{seed}.txt", n_words=600, seed=seed)
    arguments = (*SMALL, "dataset=text", f"dataset.path={books}", "trainer.max_steps=2", "trainer.stop_after_steps=1")
    with monkeypatch.context() as then:
        then.setattr("tinyllm.programs.builders.RULES", 1)
        assert train(*arguments, f"run.dir={tmp_path / 'old'}") == 0
    old = find(tmp_path / "old", prefer="last").manifest["data"]
    assert old["rules"] == "1"
    assert train(f"resume={tmp_path / 'old'}") == 0, capsys.readouterr().err
    after = find(tmp_path / "old", prefer="last")
    assert (after.step, after.manifest["data"]) == (2, old)
    cfg = tinyllm.compose(f"run={tmp_path / 'old'}", program="evaluate")
    assert evaluate_run(cfg, cfg.run)["tokens"] > 1000  # about half of 1,200 words


def test_a_checkpoint_without_a_rules_version_uses_version_1(tmp_path: Path, monkeypatch) -> None:
    from tests.data.conftest import text_corpus
    from tinyllm.tokenizers.byte import ByteTrainer

    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    file = write_corpus(tmp_path / "a.txt")
    assert open_data(text_corpus(file), ByteTrainer(), trained_on={"train": "…"}).rules == 1
    assert open_data(text_corpus(file), ByteTrainer()).rules == 2
    with pytest.raises(UserError, match=r"rules 3.*the run was made by a newer one"):
        open_data(text_corpus(file), ByteTrainer(), trained_on={"rules": "3"})
