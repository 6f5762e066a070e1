"""One validation text for arms with different data: what is measured, and what is refused."""

import json
from pathlib import Path

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, WORDS
from tinyllm.errors import UserError
from tinyllm.studies.compare.validation import SharedValidation

RUNS = (
    *SMALL,
    "trainer.max_steps=4",
    "trainer.eval_every=4",
    "seeds=1",
    "match=none",
    "parallel=1",
    "out=study",
    "--json",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two folders of twenty documents, and a third that has all documents of the second and more."""
    for name, number in (("x", 0), ("y", 5)):
        (tmp_path / name).mkdir()
        for i in range(20):
            words = [WORDS[(number + i * j) % len(WORDS)] for j in range(150)]
            (tmp_path / name / f"{i}.txt").write_text(" ".join(words))
    (tmp_path / "z").mkdir()
    for i, path in enumerate(sorted((tmp_path / "y").iterdir())):
        (tmp_path / "z" / f"{i}.txt").write_text(path.read_text())
        (tmp_path / "z" / f"{i + 20}.txt").write_text(path.read_text()[::-1])
    return tmp_path


def sources(texts: Path, x: str, z: str) -> str:
    return f'{{x:"dataset=text dataset.path={texts}/{x}",z:"dataset=text dataset.path={texts}/{z}"}}'


@pytest.mark.slow
def test_tokenizers_are_compared_on_a_mixture_in_bits_per_byte_of_one_text(texts: Path, call: Call) -> None:
    """The value of a run is what ``evaluate`` says of its last checkpoint; a second call measures nothing again."""
    arms = ("dataset=mixture", f"dataset.sources={sources(texts, 'x', 'y')}", "tokenizer=char,byte")
    text = f"dataset=text dataset.path={texts}/y"
    answer = call("compare", *RUNS, *arms, f"validation={text}")
    assert answer.code == 0, answer
    study = json.loads(answer.out)
    assert study["metric"] == "validation/bpb" and len(study["runs"]) == 2
    assert any(f"the validation part of {text}" in note for note in study["notes"])
    for run in study["runs"]:
        told = call("evaluate", f"run=study/{run['path']}", "checkpoint=last", *text.split(), "--json")
        assert json.loads(told.out)["val/bpb"] == run["value"]
    before = Path("study/measured.json").read_text()
    again = call("compare", *RUNS, *arms, f"validation={text}")
    assert json.loads(again.out)["runs"] == study["runs"]
    assert Path("study/measured.json").read_text() == before


@pytest.mark.slow
def test_arms_with_different_data_need_a_shared_text_that_none_trains_on(texts: Path, call: Call) -> None:
    arms = [f"dataset.sources={sources(texts, 'x', 'y')},{sources(texts, 'x', 'z')}", "dataset=mixture"]
    refused = call("compare", *RUNS, *arms)
    assert refused.code == 2 and "the arms have different data" in refused.err
    assert 'validation="dataset=wikitext"' in refused.err
    seen = call("compare", *RUNS, *arms, f"validation=dataset=text dataset.path={texts}/y dataset.val_fraction=0.5")
    assert seen.code == 2 and "an arm trains on the validation text" in seen.err
    assert seen.made == refused.made == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset=npy dataset.path=x.npy", "not a text"),
        ("dataset=text dataset.path=nowhere", r"validation=dataset=text .*nowhere"),
        ("dataset=text dataset.path=x dataset.max_tokens=99", "not the same text for all arms"),
        ("dataset=pydocs seed=2", "not a key of a data set"),
    ],
)
def test_what_is_no_shared_text(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SharedValidation.open(text, config_dir=None, allow=frozenset())
