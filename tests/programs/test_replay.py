"""replay repeats a run bit by bit, names what has changed since, and refuses runs that cannot be repeated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.programs.recorded_run import changed_defaults, recorded_run
from tinyllm.programs.replay import Replay, report
from tinyllm.runs.facts import read_config
from tinyllm.runs.state_diff import StateDiff


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a finished run ``run``, and one that stopped early, ``early``."""
    folder = tmp_path_factory.mktemp("replay")
    data = ("dataset=text", f"dataset.path={write_corpus(folder / 'words, and more.txt')}")
    more = (
        "trainer.max_steps=6",
        "trainer.eval_every=3",
        "trainer.checkpoint_every=3",
        "attn=gqa",
        "model.n_kv_heads=1",
    )
    named = dict(one.split("=") for one in [*SMALL, *data, *more])
    settings = [f"{key}={value}" for key, value in named.items()]
    assert train(*settings, f"run.dir={folder / 'run'}") == 0
    assert train(*settings, f"run.dir={folder / 'early'}", "trainer.stop_after_steps=3") == 0
    return folder


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(facts)
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "run",
            lambda run: (run / "metrics.jsonl").write_text(""),
            "a file was changed after the run ended",
        ),
        ("run", lambda run: (run / "config.yaml").unlink(), "a file was removed after the run ended"),
        ("run", lambda run: (run / "run.json").unlink(), "not a run directory"),
        ("run", lambda run: edit(run, lambda facts: facts.update(status="running")), "the run never finished"),
        (
            "run",
            lambda run: edit(run, lambda facts: facts.update(status="failed", reason="E: x")),
            "status is failed",
        ),
        ("run", lambda run: edit(run, lambda facts: facts.update(status="imported")), "status is imported"),
        ("run", lambda run: edit(run, lambda facts: facts.pop("sha256")), "the run has no seal"),
        ("run", lambda run: edit(run, lambda facts: facts.pop("starts")), "does not record how the run began"),
        ("early", lambda run: None, "the run was interrupted at step 3"),
        (
            "run",
            lambda run: edit(
                run, lambda facts: facts["starts"].append(facts["starts"][0] | {"step": 4, "world_size": 2})
            ),
            "resumed at step 4 with a different number of ranks",
        ),
        (
            "run",
            lambda run: edit(run, lambda facts: facts["starts"].append(facts["starts"][0] | {"settings": ["seed=2"]})),
            "with different settings",
        ),
        ("run", lambda run: edit(run, lambda facts: facts.update(starts=[1])), "starts has an unexpected value"),
        ("run", lambda run: edit(run, lambda facts: facts["starts"][0].update(threads=10**18)), "starts has an"),
        ("run", lambda run: edit(run, lambda facts: facts["starts"][0].update(settings=[1])), "starts has an"),
        ("run", lambda run: edit(run, lambda facts: facts.update(result={"step": "6"})), "result has an"),
        ("run", lambda run: edit(run, lambda facts: facts.update(info=[])), "info has an unexpected value"),
        ("run", lambda run: next(run.glob("checkpoints/step-000006/state*")).write_bytes(b"no"), "checkpoint damaged"),
    ],
)
@pytest.mark.every(4)
def test_a_run_that_cannot_be_repeated_is_refused_in_one_line(
    made: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[Path], object],
    message: str,
    call: Call,
) -> None:
    run = shutil.copytree(made / name, tmp_path / "copy")
    change(run)
    answer = call("replay", str(run))
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1, answer
    assert answer.made == [] and answer.out == ""


def test_options_that_a_later_version_named_at_a_resume_are_no_different_settings(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "copy")

    def begun_when_adamw_was_the_default(facts: dict[str, Any]) -> None:
        [start] = facts["starts"]
        before = [one for one in start["settings"] if not one.startswith("optimizer=")]
        assert len(before) < len(start["settings"])
        facts["starts"] = [start | {"settings": before}, start | {"step": 3}]

    edit(run, begun_when_adamw_was_the_default)
    assert "optimizer=adamw" in recorded_run(run).settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "7"), "the run has fewer steps (--steps=7): between 1 and 6"),
        (("--steps", "0"), "between 1 and 6"),
        (("--steps", "x"), "argument --steps: invalid int value: 'x'"),
        (("--step", "1"), "unrecognized arguments: --step 1"),
    ],
)
def test_wrong_flags_are_one_line(made: Path, flags: tuple[str, ...], message: str, call: Call) -> None:
    answer = call("replay", str(made / "run"), *flags)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1


def test_an_existing_out_directory_is_refused(made: Path, call: Call) -> None:
    answer = call("replay", str(made / "run"), "--out", str(made))
    assert answer.code == 2 and "the directory exists" in answer.err


def test_saved_settings_cannot_smuggle_a_flag(made: Path, tmp_path: Path) -> None:
    from tinyllm.runs.seal import sealed

    run = shutil.copytree(made / "run", tmp_path / "copy")
    for setting in ("--config-dir=/tmp", "hydra.run.dir=/tmp"):
        (run / "overrides.yaml").write_text(f"- {setting}\n", encoding="utf-8")
        edit(run, lambda facts: facts.update(sha256=sealed(run)))
        with pytest.raises(Exception, match="not the settings of a run"):
            recorded_run(run)


def test_the_recorded_command(made: Path) -> None:
    run = recorded_run(made / "run", steps=3)
    assert "attn=gqa" in run.settings and f"dataset.path={made / 'words, and more.txt'}" in run.settings
    assert run.command(Path("x"))[-2:] == ["run.dir=x", "trainer.stop_after_steps=3"]
    assert run.steps == 3 and run.checkpoint is not None and run.checkpoint.step == 3
    assert recorded_run(made / "early", steps=2).checkpoint is None


@pytest.mark.slow
def test_changed_defaults_are_set_to_their_old_values(made: Path) -> None:
    settings, config = recorded_run(made / "run").settings, read_config(made / "run")
    then = {"trainer.grad_clip": 0.7, "optimizer.betas": [0.8, 0.9], "dataset.val_path": "a, b", "trainer.gone": 1}
    assert changed_defaults(settings, config, config_dir=None) == []
    assert changed_defaults(settings, config | then, config_dir=None) == [
        "trainer.grad_clip=0.7",
        "dataset.val_path=a, b",
        "optimizer.betas=[0.8, 0.9]",
    ]
    without_effect = {"trainer.grad_clip": -1, "trainer.sample_prompt": "there are no samples"}
    assert changed_defaults(settings, config | without_effect, config_dir=None) == []


def test_the_report_names_what_differs() -> None:
    same, other = StateDiff(name="metrics", values=3), StateDiff(name="metrics", values=3)
    other.differences.append("train/loss of step 2: 2.5 and 2.25")
    known = {"run": "a", "again": "b"}
    plain = Replay(**known, agree=True, sections=[same], made_by={}, config={})
    assert report(plain)[-2:] == [
        "the run has no checkpoint of this step: weights are not compared",
        "verdict: bitwise the same",
    ]
    otherwise = Replay(**known, agree=True, sections=[same], made_by={"code": ("a" * 64, "b" * 64)}, config={})
    assert "code differs: aaaaaaaaaaaa then, bbbbbbbbbbbb now" in report(otherwise)
    assert report(otherwise)[-1] == "verdict: bitwise the same, despite these differences"
    unequal = Replay(**known, agree=False, sections=[other], made_by={}, config={})
    assert "this training is not deterministic" in report(unequal)[-3]
    assert report(unequal)[-1] == "verdict: not the same, first in train/loss of step 2: 2.5 and 2.25"


def test_escape_sequences_in_a_run_are_escaped(
    made: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    escape = "\x1b]0;owned\x07"
    run = shutil.copytree(made / "run", tmp_path / "copy")
    edit(run, lambda facts: facts.update(machine=escape, host=escape, versions={"torch": escape}))
    copied = lambda command, out, *, threads: shutil.copytree(made / "run", out / "run")  # noqa: E731
    monkeypatch.setattr("tinyllm.programs.replay.train_again", copied)
    answer = call("replay", str(run))
    assert answer.code == 0 and "\\x1b]0;owned\\x07" in answer.out, answer
    assert "\x1b" not in answer.out + answer.err


@pytest.mark.slow
def test_a_run_is_repeated_bit_by_bit(made: Path, tmp_path: Path, call: Call) -> None:
    run = shutil.copytree(made / "run", tmp_path / "copy")
    edit(run, lambda facts: facts.update(code="0" * 64))
    answer = call("replay", str(run), "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["agree"] and not found["config"]
    assert list(found["made_by"]) == ["code"] and found["made_by"]["code"][0] == "0" * 64
    values = {section["name"]: section["values"] for section in found["sections"]}
    assert values["metrics"] == 6 and values["weights"] > 10 and values["optimizer"] > 20
    assert not Path(found["again"]).exists()


@pytest.mark.slow
def test_changed_data_is_named(made: Path, tmp_path: Path, call: Call) -> None:
    text = tmp_path / "words.txt"
    write_corpus(text)
    run = tmp_path / "run"
    settings = [*SMALL, "dataset=text", f"dataset.path={text}", "trainer.max_steps=3"]
    assert train(*settings, f"run.dir={run}") == 0
    write_corpus(text, seed=1)
    answer = call("replay", str(run), "--steps", "2", "--out", str(tmp_path / "again"))
    assert answer.code == 1, answer
    assert (
        "data.train differs: " in answer.out
        and "verdict: not the same, first in train/grad_norm of step 1" in answer.out
    )
    assert (tmp_path / "again" / "run" / "metrics.jsonl").is_file()
    text.unlink()
    gone = call("replay", str(run))
    assert gone.code == 2 and "no such file or folder (dataset.path=" in gone.err and len(gone.err.splitlines()) == 1
