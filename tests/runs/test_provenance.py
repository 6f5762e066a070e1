"""The code fingerprint covers all training code, and the seal detects changed files of a run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support import sources
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import TEMPLATE
from tinyllm.runs.provenance import PACKAGE, TRAINING_CODE, code_fingerprint, package_fingerprint, training_files
from tinyllm.runs.seal import SEALED, check_seal

NOT_TRAINING = {"config", "loggers", "errors.py", "__init__.py"}
NOT_TRAINING |= {f"programs/{name}.py" for name in ("__init__", "run_summary", "initial_weights", "load_model")}
NOT_TRAINING |= {f"programs/{name}.py" for name in ("conversations", "data_checks", "run_checks")}
"""Files that training imports and that cannot change its numbers: they compose the configuration, show and check."""


def test_everything_training_imports_is_fingerprinted_or_listed_as_irrelevant() -> None:
    counted = set(training_files(PACKAGE))
    seen, left = set(), [PACKAGE / "programs" / "train.py"]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for one in sources.imports(sources.tree(path)):
            place = sources.ROOT.joinpath(*one.module.split("."))
            if one.module.startswith("tinyllm."):
                left += [file for file in (place.with_suffix(".py"), place.parent.with_suffix(".py")) if file.is_file()]
    names = [path.relative_to(PACKAGE) for path in seen - counted]
    others = {name.as_posix() if name.parts[0] == "programs" else name.parts[0] for name in names}
    assert others <= NOT_TRAINING, "add it to TRAINING_CODE, or to NOT_TRAINING if no number of a run depends on it"
    assert len(seen & counted) > 50


def test_changing_a_fingerprinted_file_changes_the_fingerprint(tmp_path: Path) -> None:
    copy = tmp_path / "tinyllm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = package_fingerprint(copy)
    assert before == code_fingerprint()
    (copy / "loggers" / "curves.py").write_text("", encoding="utf-8")
    assert package_fingerprint(copy) == before
    folders = [name for name in TRAINING_CODE if (copy / name).is_dir()]
    sources_of_kernels = (copy / "nn" / "train_kernels.cpp", copy / "nn" / "train_products.h")
    of_folders = (min((copy / name).glob("*.py")) for name in folders)
    for file in (copy / "programs" / "trainer_builder.py", *sources_of_kernels, *of_folders):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert package_fingerprint(copy) != before
        file.write_bytes(content)
    (copy / "nn" / "norm.py").rename(copy / "nn" / "norms.py")
    assert package_fingerprint(copy) != before


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    corpus = ("dataset=text", f"dataset.path={write_corpus(folder / 'words.txt')}")
    assert train(*SMALL, *corpus, "trainer.max_steps=4", "trainer.stop_after_steps=2", f"run.dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.mark.parametrize("name", [name for name in SEALED if name != TEMPLATE])
def test_a_changed_or_removed_file_is_named(ended: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    check_seal(run)
    with (run / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(UserError, match=rf"was changed after the run ended \(.*{name}\)"):
        check_seal(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"was removed after the run ended \(.*{name}\)"):
        check_seal(run)


def test_an_added_file_is_named(ended: Path, tmp_path: Path) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    (run / TEMPLATE).write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(UserError, match=rf"was added after the run ended \(.*{TEMPLATE}\)"):
        check_seal(run)


def test_each_end_is_sealed_and_each_start_recorded(ended: Path, tmp_path: Path) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    assert read_run_json(run)["status"] == "interrupted"
    assert train(f"resume={run}", "trainer.grad_clip=0.5") == 0
    check_seal(run)
    facts = read_run_json(run)
    assert facts["status"] == "finished" and facts["code"] == code_fingerprint()
    assert [one["step"] for one in facts["starts"]] == [0, 2]
    assert "trainer.grad_clip=0.5" in facts["starts"][1]["settings"]
    assert "trainer.grad_clip=0.5" not in facts["starts"][0]["settings"]


def test_a_run_without_a_seal_is_refused(ended: Path, tmp_path: Path) -> None:
    run = shutil.copytree(ended, tmp_path / "run")
    facts = read_run_json(run)
    del facts["sha256"]
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UserError, match="the run has no seal"):
        check_seal(run)
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged file \(.*run.json\)"):
        check_seal(run)
    (run / "run.json").unlink()
    with pytest.raises(UserError, match="not a run directory"):
        check_seal(run)
