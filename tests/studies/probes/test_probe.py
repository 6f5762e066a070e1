"""The probe program: arms, table, JSON, cached results, custom tasks, user errors."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm.studies.probes.trials
from tests.programs.test_bad_input import CONTRACT
from tests.studies.probes.test_probing import TINY
from tests.support.fixtures import Call
from tinyllm.errors import UserError
from tinyllm.studies.probes.arms import arms_of, parts_of
from tinyllm.studies.probes.copying import Copying
from tinyllm.studies.probes.task import Sequences
from tinyllm.studies.probes.trials import probe_accuracies

SMALL = [setting for setting in TINY if not setting.startswith("tasks=")]


class Echo(Copying):
    """A custom task."""

    def draw(self, n: int, generator: np.random.Generator) -> Sequences:
        inputs, targets = super().draw(n, generator)
        return inputs[:, ::-1].copy(), targets


@pytest.fixture
def trained_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the tasks that are trained on."""
    trained = []
    measure = tinyllm.studies.probes.trials.measure

    def count(cfg: Any, name: str, *more: Any, **named: Any) -> Any:
        trained.append(name)
        return measure(cfg, name, *more, **named)

    monkeypatch.setattr(tinyllm.studies.probes.trials, "measure", count)
    yield trained


@pytest.mark.slow
def test_accuracy_of_every_arm(call: Call, trained_tasks: list[str]) -> None:
    arguments = (*SMALL, "attn=mha,mqa", "tasks=[recall]")
    answer = call("probe", *arguments)
    assert (answer.code, answer.err, trained_tasks) == (0, "", ["recall", "recall"])
    again = call("probe", *arguments, "--json")
    assert len(trained_tasks) == 2, "everything is cached"
    arms = {arm["arm"]: arm["probes"][0] for arm in json.loads(again.out)["arms"]}
    assert list(arms) == ["mha", "mqa"] and arms["mha"]["parameters"] > arms["mqa"]["parameters"]
    for name, probe in arms.items():
        score = probe["scores"]["recall"]
        assert f"{name}, seed 1337: recall {score['accuracy']:.3f} (" in answer.out
        assert re.search(rf"{name} +{score['accuracy']:.3f} \({score['low']:.3f}–{score['high']:.3f}\)  ", answer.out)
        assert score["low"] <= score["accuracy"] <= score["high"]


@pytest.mark.slow
def test_every_arm_on_every_test_with_every_seed(call: Call, trained_tasks: list[str]) -> None:
    arguments = (*SMALL, "attn=mha,mqa", "ffn=gelu,swiglu", "tasks=[recall,length]", "seeds=2")
    answer = call("probe", *arguments, "--json")
    assert (answer.code, answer.err) == (0, "")
    arms = json.loads(answer.out)["arms"]
    assert [arm["arm"] for arm in arms] == ["mha gelu", "mha swiglu", "mqa gelu", "mqa swiglu"]
    assert [arm["settings"] for arm in arms][1] == ["attn=mha", "ffn=swiglu"]
    for arm in arms:
        assert [(probe["task"], probe["seed"]) for probe in arm["probes"]] == [
            (task, seed) for task in ("recall", "length") for seed in (1337, 1338)
        ]
        means = {
            name: sum(probe["scores"][name]["accuracy"] for probe in arm["probes"] if name in probe["scores"]) / 2
            for name in ("recall", "length@1x", "length@2x", "length@4x")
        }
        assert arm["accuracies"] == pytest.approx(means)
    assert len(trained_tasks) == 16

    place = Path("outputs/probe")
    with (place / "probes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 4
    wanted = [
        (arm["arm"], probe["seed"], test, score["accuracy"], score["low"], score["high"])
        for arm in arms
        for probe in arm["probes"]
        for test, score in probe["scores"].items()
    ]
    numbers = ("accuracy", "low", "high")
    assert [(row["arm"], int(row["seed"]), row["test"], *(float(row[n]) for n in numbers)) for row in rows] == wanted
    assert len(list(place.glob("*.json"))) == 16

    again = call("probe", *arguments, "--json")
    assert again.out == answer.out and len(trained_tasks) == 16, "everything is cached"
    table = call("probe", *arguments)
    assert len(trained_tasks) == 16
    assert "already known" in table.out
    [line] = [line for line in table.out.splitlines() if line.startswith("mqa gelu  ")]
    shown = re.split(r"\s{2,}", line)[1:5]
    means = arms[2]["accuracies"]
    assert [cell.split(" ± ")[0] for cell in shown] == [f"{mean:.3f}" for mean in means.values()]


@pytest.mark.slow
def test_only_missing_results_are_trained_after_an_interruption(
    call: Call, trained_tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "tasks=[recall,copying,induction]", "--json")
    measure = tinyllm.studies.probes.trials.measure

    def interrupted(cfg: Any, name: str, *more: Any, **named: Any) -> Any:
        if name == "copying":
            raise KeyboardInterrupt
        return measure(cfg, name, *more, **named)

    with monkeypatch.context() as context:
        context.setattr(tinyllm.studies.probes.trials, "measure", interrupted)
        answer = call("probe", *arguments)
    assert (answer.code, answer.err, trained_tasks) == (130, "interrupted\n", ["recall"])
    assert call("probe", *arguments).code == 0
    assert trained_tasks == ["recall", "copying", "induction"]


@pytest.mark.slow
def test_diverging_arm_does_not_stop_the_others(call: Call) -> None:
    answer = call("probe", *SMALL, "tasks=[recall]", "optimizer.lr=1e30,1e-3", "trainer.nonfinite.action=stop")
    assert answer.code == 1
    assert "lr=1e+30: loss or gradient norm not finite" in answer.out.replace("lr=1e30", "lr=1e+30")
    assert any(line.startswith(("lr=1e-3 ", "lr=0.001 ")) for line in answer.out.splitlines())


def test_custom_task_is_chosen_by_name(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "tasks"
    folder.mkdir(parents=True)
    (folder / "echo.yaml").write_text(
        f"# @package tasks.echo\n_target_: {Echo.__module__}.Echo\nsymbols: 6\nalphabet: 12\nlength: 30\n",
        encoding="utf-8",
    )
    flags = ("--config-dir", str(tmp_path / "mine"), "--json")
    answer = call("probe", *SMALL, "tasks=[echo,recall]", "tasks.echo.symbols=7", *flags)
    assert answer.code == 0, answer.err
    [arm] = json.loads(answer.out)["arms"]
    assert list(arm["accuracies"]) == ["echo", "recall"]
    assert arm["probes"][0]["scores"]["echo"]["chance"] == 1 / 7
    refused = call("probe", "tasks=[ecko]", *flags)
    assert "no such option (tasks=ecko): did you mean echo? choose from copying, echo, induction" in refused.err


def test_accuracies_of_a_training_composition(tmp_path: Path) -> None:
    training = ["model=large", "attn=mla", "model.d_ff=512", "dataset=stdlib", "trainer.max_steps=9", "seed=3"]
    assert parts_of([*training, "model.block.attn.window=4", "trainer.batch_size=2", "run.dir=x"]) == [
        "attn=mla",
        "seed=3",
        "model.block.attn.window=4",
    ]
    more = [setting for setting in TINY if not setting.startswith("tasks=")]
    got = probe_accuracies(training, ["length"], out=str(tmp_path), more=more)
    assert list(got) == ["length@1x", "length@2x", "length@4x"]
    assert all(0 <= accuracy <= 1 for accuracy in got.values())
    [file] = tmp_path.glob("length_s3_*.json")
    assert json.loads(file.read_text())["settings"]["model"]["block"]["attn"]["_target_"].endswith("MLA")
    with pytest.raises(UserError, match=r"no such option \(tasks=lenth\): did you mean length\?"):
        probe_accuracies(training, ["lenth"], out=str(tmp_path))


EVERY_DAY = ("an unknown task", "no task", "a context that is too short", "data", "tasks as arms")
BAD = {
    "an unknown task": ("tasks=[recall,copyng]", "tasks=copyng", "did you mean copying?"),
    "no task": ("tasks=[]", "tasks=[]", "choose from copying, induction, length, recall"),
    "no steps": ("trainer.max_steps=0", "trainer.max_steps=0", "at least 1"),
    "no seeds": ("seeds=0", "seeds=0", "at least 1"),
    "no examples": ("examples=0", "examples=0", "at least 1"),
    "a context that is too short": ("model.max_seq_len=20", "model.max_seq_len=20", "needs sequences of 24"),
    "sizes of a task": ("tasks.recall.pairs=20", "tasks.recall.keys=16", "at least 20"),
    "a size of a task that is not chosen": ("tasks=[recall] tasks.copying.symbols=3", "tasks.copying", "recall"),
    "too few sequences": ("tasks.copying.alphabet=8 tasks.copying.length=9", "tasks.copying", "make the task larger"),
    "data": ("dataset=stdlib", "dataset=stdlib", "a probe generates its own data"),
    "an unknown key": ("trainer.max_stesp=5", "trainer.max_stesp=5", "did you mean trainer.max_steps"),
    "a key of the data": ("dataset.val_fraction=0.2", "dataset.val_fraction=0.2", "leave it out"),
    "a tokenizer": ("tokenizer=byte", "tokenizer=byte", "leave it out"),
    "an experiment": ("experiment=nanogpt_char_cpu", "experiment=nanogpt_char_cpu", "leave it out"),
    "the length of sequences": ("trainer.seq_len=32", "trainer.seq_len=32", "leave it out"),
    "another horizon": ("trainer.max_tokens=1000", "trainer.max_tokens=1000", "leave it out"),
    "a vocabulary": ("model.vocab_size=99", "model.vocab_size=99", "leave it out"),
    "a run directory": ("run.dir=x", "run.dir=x", "does not save a run"),
    "a seed for each arm": ("seed=1,2", "seed=1,2", "seeds=<number>"),
    "tasks as arms": ("tasks=recall,copying", "tasks=recall,copying", "one value for all arms"),
    "sizes that do not go together": ("model.n_heads=3", "model.d_model=64", "n_heads"),
    "one of several arms": ("attn=mha,mla model.block.attn.head_dim=8", "model.block.attn.head_dim=8", "arm mla"),
    "a multirun": ("-m attn=mha,gqa", "-m", "giving a key several values already creates arms"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(case, marks=() if case in EVERY_DAY else pytest.mark.slow) for case in BAD]
)
def test_mistakes_are_one_line_and_leave_nothing(name: str, call: Call) -> None:
    arguments, where, hint = BAD[name]
    answer = call("probe", *arguments.split())
    said = CONTRACT.fullmatch(answer.err.rstrip("\n"))
    assert said is not None, answer.err
    assert where in said["where"] and hint in said["hint"], answer.err
    assert (answer.code, answer.made) == (2, [])


def test_arms_are_named_after_what_differs() -> None:
    arm_set = arms_of(["attn=mha,gqa", "optimizer.lr=0.01", "seeds=2"])
    assert [(spec.name, spec.settings) for spec in arm_set.specs] == [("mha", ("attn=mha",)), ("gqa", ("attn=gqa",))]
    assert arm_set.settings_of(arm_set.specs[1]) == ["optimizer.lr=0.01", "seeds=2", "attn=gqa"]
    assert [spec.name for spec in arms_of(["seeds=2"]).specs] == ["model"]
