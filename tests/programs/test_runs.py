"""The runs command finds, filters, sorts and compares run directories, and lists damaged ones as damaged."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, train, write_corpus
from tests.test_imports import loaded_after
from tinyllm.errors import UserError
from tinyllm.runs.listing import ListedRun, find_runs, last_values
from tinyllm.runs.metrics_log import BLOCK, lines_backwards, read_metrics
from tinyllm.runs.query import in_order, parse_condition
from tinyllm.utils.locks import try_lock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, ``one`` and ``sweep/two``."""
    folder = tmp_path_factory.mktemp("runs")
    data = ("dataset=text", f"dataset.path={write_corpus(folder / 'words.txt')}")
    named = dict(one.split("=") for one in [*SMALL, *data, "trainer.max_steps=4", "trainer.eval_every=2"])
    settings = [f"{key}={value}" for key, value in named.items()]
    assert train(*settings, f"run.dir={folder / 'all' / 'one'}") == 0
    more = ("attn=gqa", "model.n_kv_heads=1", "optimizer=lion", "optimizer.lr=1e-4", "trainer.max_steps=6")
    assert train(*settings, *more, f"run.dir={folder / 'all' / 'sweep' / 'two'}") == 0
    return folder / "all"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of ``made`` to damage."""
    return shutil.copytree(made, tmp_path / "all")


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table(made: Path, call: Call) -> None:
    shown = call("runs", str(made), "--sort", "run")
    assert shown.code == 0 and shown.err == "" and shown.made == []
    head, one, two, common = table(shown.out)
    assert head == [
        "run",
        "status",
        "attn",
        "optimizer",
        "parameters",
        "step",
        "val/bpb",
        "best_val_loss",
        "tokens/s",
        "age",
    ]
    assert one[:6] == [str(made / "one"), "finished", "mha", "adamw", "17.1k", "4/4"]
    assert two[:6] == [str(made / "sweep" / "two"), "finished", "gqa", "lion", "15.1k", "6/6"]
    assert common == ["all:", "model=nano,", "ffn=gelu,", "moe=none,", "dataset=text,", "seed=1337"]
    last = [record for record in read_metrics(made / "one" / "metrics.jsonl") if "val/bpb" in record][-1]
    assert float(one[6]) == pytest.approx(last["val/bpb"], abs=5e-5)


def test_a_run_given_twice_is_listed_once(made: Path) -> None:
    assert [run.path for run in find_runs([made, made / "one"])] == [made / "one", made / "sweep" / "two"]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["attn=gqa"], {"two"}),
        (["attn!=gqa"], {"one"}),
        (["optimizer.lr<2e-4"], {"two"}),
        (["optimizer.lr>=3e-4", "status=finished"], {"one"}),
        (["val/loss>0"], {"one", "two"}),
        (["step<=4"], {"one"}),
        (["step=4.0"], {"one"}),
        (["step>4", "attn=mha"], set()),
        (["ema.enabled=false"], {"one", "two"}),
        (["ema.enabled=true"], set()),
        (["trainer.max_minutes=null"], {"one", "two"}),
        (["model.block.attn._target_~GQA"], {"two"}),
        (["optimizer._target_=tinyllm.optim.lion.Lion"], {"two"}),
        (["run~sweep"], {"two"}),
    ],
)
def test_conditions(made: Path, conditions: list[str], found: set[str], call: Call) -> None:
    shown = call("runs", str(made), "--where", *conditions, "--json")
    assert shown.code == 0, shown
    assert {Path(one["run"]).name for one in json.loads(shown.out)} == found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--where", "attn"), "not a condition (--where=attn)"),
        (("--where", "step<x"), "no number to compare with (--where=step<x)"),
        (("--sort", "optimizer.lrr"), "no run has this key (--sort=optimizer.lrr): did you mean optimizer.lr"),
        (("--where", "atn=mha"), "no run has this key (--where=atn): did you mean attn"),
        (("--columns", "run,nothing_like_it"), "no run has this key (--columns=nothing_like_it)"),
        (("--limit", "0"), "nothing would be shown (--limit=0)"),
        (("--csv", "--json"), "argument --json: not allowed with argument --csv"),
        (("--diff", "here"), "argument --diff: expected 2 arguments"),
        (("--diff", "here", "there"), "the run cannot be compared (here): not a run directory"),
    ],
)
def test_wrong_flags_are_one_line(made: Path, flags: tuple[str, ...], message: str, call: Call) -> None:
    answer = call("runs", str(made), *flags)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1, answer


def test_no_runs(made: Path, tmp_path: Path, call: Call) -> None:
    assert call("runs", str(tmp_path)).out == "no runs\n"
    assert call("runs", str(made), "--where", "step<0").out == "none of 2 runs matches\n"
    assert call("runs", str(tmp_path), "--json").out == "[]\n"
    assert "no such directory (outputs)" in call("runs").err


def test_orders(made: Path) -> None:
    runs = find_runs([made])
    assert [run.get("step") for run in in_order(runs, "step")] == [4, 6]
    assert [run.get("step") for run in in_order(runs, "step", reverse=True)] == [6, 4]
    runs[0].values["x"], runs[1].values["x"] = "text", None
    for reverse in (False, True):
        assert [run.get("x") for run in in_order(runs, "x", reverse=reverse)] == ["text", None]
    runs[1].values["x"] = 3
    assert [run.get("x") for run in in_order(runs, "x")] == [3, "text"]


def test_csv_has_all_digits(made: Path, call: Call) -> None:
    shown = call("runs", str(made), "--columns", "run,val/loss,optimizer.lr", "--sort", "run", "--csv").out
    head, one, _ = csv.reader(io.StringIO(shown))
    last = read_metrics(made / "one" / "metrics.jsonl")[-1]
    assert head == ["run", "val/loss", "optimizer.lr"]
    assert one == [str(made / "one"), repr(last["val/loss"]), "0.0003"]


def test_diff_of_two_runs(made: Path, call: Call) -> None:
    pair = (str(made / "one"), str(made / "sweep" / "two"))
    found = json.loads(call("runs", "--diff", *pair, "--json").out)
    assert found["configuration"]["model.n_kv_heads"] == [2, 1]
    assert found["configuration"]["optimizer.weight_decay"] == [0.1, 0.3]
    assert found["configuration"]["optimizer.eps"] == [1e-8, None]
    assert not any(key.startswith("run.") for key in found["configuration"]) and found["made by"] == {}
    logs = [read_metrics(Path(run) / "metrics.jsonl")[-1] for run in pair]
    assert found["metrics"]["val/loss"] == [log["val/loss"] for log in logs]
    shown = call("runs", "--diff", *pair).out
    assert "made by: the same" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("val/loss")]
    assert float(line.split()[-1]) == pytest.approx(logs[1]["val/loss"] - logs[0]["val/loss"], rel=1e-4)
    rows = list(csv.reader(io.StringIO(call("runs", "--diff", *pair, "--csv").out)))
    assert ["configuration", "model.n_kv_heads", "2", "1"] in rows


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    edit(facts)
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")


def test_running_and_killed_runs_are_told_apart_by_the_lock(copied: Path) -> None:
    run = copied / "one"
    change(run, lambda facts: facts.update(status="running"))
    log = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(log[:3]) + log[3][:20], encoding="utf-8")
    killed = ListedRun(run)
    assert killed.get("status") == "interrupted" and killed.get("step") == 3
    assert killed.get("best_val_loss") == killed.get("val/loss") == json.loads(log[1])["val/loss"]
    handle = try_lock(run / ".lock")
    assert handle is not None
    assert ListedRun(run).get("status") == "running"
    os.close(handle)


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda run: (run / "run.json").write_text("{"), "damaged file"),
        (lambda run: (run / "run.json").write_text("[]"), "one JSON object"),
        (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), "damaged file"),
        (lambda run: (run / "run.json").write_text('{"info": 3}'), "damaged file"),
        (lambda run: (run / "run.json").write_text("[" * 100_000), "nested"),
        (lambda run: (run / "run.json").write_text('{"info": ' * 1000 + "1" + "}" * 1000), "nested"),
        (lambda run: (run / "run.json").write_text('{"info": {"flops": NaN}}'), "NaN"),
        (lambda run: ((run / "run.json").unlink(), os.mkfifo(run / "run.json")), "not a regular file"),
        (lambda run: (run / "run.json").unlink(), "not a run directory"),
    ],
)
def test_a_damaged_run_is_listed_as_damaged(
    copied: Path,
    damage: Callable[[Path], object],
    note: str,
    call: Call,
) -> None:
    damage(copied / "one")
    answer = call("runs", str(copied), "--sort", "run")
    assert answer.code == 0, answer
    [line] = [line for line in answer.out.splitlines() if line.split()[0] == str(copied / "one")]
    assert line.split()[1] == "damaged" and note in line
    assert "finished" in answer.out


def test_a_single_damaged_run_is_listed(tmp_path: Path, call: Call) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("[" * 100_000)
    for flags in ([], ["--sort", "val/loss"], ["--columns", "run,status,val/loss,note"]):
        answer = call("runs", str(tmp_path), *flags)
        assert answer.code == 0 and "damaged" in answer.out, answer


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_the_intact_files_of_a_damaged_run_are_shown(copied: Path, name: str, call: Call) -> None:
    aliases = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    for content in (b"\x00\xff: [", b"", b"[" * 100_000, f"a0: &a0 [x]\n{aliases}".encode(), None):
        (copied / "one" / name).unlink() if content is None else (copied / "one" / name).write_bytes(content)
        answer = call("runs", str(copied), "--sort", "run", "--columns", "run,status,parameters,seed,val/loss")
        assert answer.code == 0 and len(answer.out.splitlines()) == 3, answer
        assert answer.out.splitlines()[1].split()[1:3] == ["finished", "17.1k"]


def test_nothing_of_a_run_commands_the_terminal(copied: Path, call: Call) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\u202e"
    facts = json.loads((copied / "one" / "run.json").read_text(encoding="utf-8"))
    facts["machine"] = facts["choices"]["attn"] = f"mha{escape}"
    (copied / "one" / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    config = (copied / "one" / "config.yaml").read_text(encoding="utf-8")
    odd = escape.replace("\x1b", "\\e").replace("\x07", "\\a")
    (copied / "one" / "config.yaml").write_text(f'{config}\n"odd{odd}": "x{odd}"\n', encoding="utf-8")
    one, two = str(copied / "one"), str(copied / "sweep" / "two")
    for flags in ([str(copied)], [str(copied), "--columns", "run,attn,machine"], ["--diff", one, two], [one, "--csv"]):
        answer = call("runs", *flags)
        assert answer.code == 0, answer
        assert not set("\x1b\x07\u202e") & set(answer.out + answer.err)
    answer = call("runs", str(copied), "--where", f"attn{escape}=1")
    assert answer.code == 2 and not set("\x1b\x07\u202e") & set(answer.out + answer.err)


def test_check_finds_a_file_changed_by_hand(copied: Path, call: Call) -> None:
    with (copied / "one" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "val/loss": 0.1}\n')
    assert {one["status"] for one in json.loads(call("runs", str(copied), "--json").out)} == {"finished"}
    shown = call("runs", str(copied), "--check", "--json", "--sort", "run").out
    assert [one["status"] for one in json.loads(shown)] == ["changed", "finished"]


def test_metrics_are_read_backwards(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    lines = [str(index).encode() * (index % 7) for index in range(40_000)]
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert file.stat().st_size > 3 * BLOCK
    assert list(lines_backwards(file)) == [line for line in reversed(lines) if line]
    for content, found in (
        (b"", []),
        (b"a", [b"a"]),
        (b"\na\n\nb", [b"b", b"a"]),
        (b"x" * 3 * BLOCK, [b"x" * 3 * BLOCK]),
        (b"a\n" + b"x" * 40 * BLOCK + b"\nb", [b"b", b"a"]),
        (b"x" * 40 * BLOCK + b"\n", []),
    ):
        file.write_bytes(content)
        assert list(lines_backwards(file)) == found
    early, late = {"step": 1, "val/loss": 2.0, "old": 1}, {"step": 2, "train/loss": 1.0, "val/loss": 1.5}
    file.write_text("".join(json.dumps(one) + "\n" for one in (early, late, {"step": 3, "train/loss": 0.5})))
    assert last_values(file) == {"step": 3, "train/loss": 0.5, "val/loss": 1.5}


def test_parse_condition() -> None:
    assert parse_condition("a.b<=-1e-3") == parse_condition("a.b <= -0.001")
    assert parse_condition("run~a=b").value == "a=b"
    assert parse_condition("x=").value == ""
    with pytest.raises(UserError):
        parse_condition("=3")


def test_listing_loads_nothing_heavy(made: Path) -> None:
    for flags in ([str(made), "--where", "optimizer.lr>0", "--check"], ["--diff", *[str(made / "one")] * 2]):
        code = (
            f"import sys; sys.argv = ['runs', *{flags!r}]\n"
            "from tinyllm.programs.runs import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        )
        loaded = loaded_after(code)
        assert "yaml" in loaded and loaded & {"torch", "numpy", "hydra", "omegaconf", "matplotlib"} == set()
