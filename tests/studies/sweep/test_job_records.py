"""Job records, their files, and sweep.csv."""

import csv
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.job import Job, short_name
from tinyllm.studies.sweep.table import sweep_table


@pytest.fixture
def directory(tmp_path: Path) -> SweepDir:
    made = SweepDir(tmp_path / "swept")
    made.records_dir.mkdir(parents=True)
    return made


def jobs(*seeds: int, lr: str = "1e-3") -> list[Job]:
    return [Job(overrides=[f"optimizer.lr={lr}", f"seed={seed}"], swept=[f"seed={seed}"]) for seed in seeds]


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (["attn=mha", "optimizer.lr=0.001"], "attn-mha_lr-0.001"),
        (["optimizer.lr=0.00123456789"], "lr-0.001235"),
        (["dataset.path='/data/some text.txt'"], "path-some-text.txt"),
        (["model.layers.json={a: 1}"], "json--a-1"),
        ([], ""),
        (["run.name=" + "x" * 200], "name-" + "x" * 75),
    ],
)
def test_short_names_of_jobs(swept: list[str], name: str) -> None:
    assert short_name(swept) == name


def test_a_job_is_found_by_its_settings_in_any_order(directory: SweepDir) -> None:
    first = directory.register(jobs(1, 2))
    assert [record.name for record in first] == ["000_seed-1", "001_seed-2"]
    reordered = Job(overrides=["seed=2", "trainer.max_minutes=3", "optimizer.lr=1e-3"], swept=["seed=2"])
    [again] = directory.register([reordered])
    assert (again.name, again.overrides) == ("001_seed-2", list(reordered.overrides))
    assert directory.register(jobs(3))[0].name == "002_seed-3"
    with pytest.raises(UserError, match=r"000_seed-1 has optimizer.lr=1e-3, this command has optimizer.lr=1e-2"):
        directory.register(jobs(1, lr="1e-2"))


def test_a_damaged_record_is_named(directory: SweepDir) -> None:
    directory.register(jobs(1))
    (directory.records_dir / "000_seed-1.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"invalid job record \(.*000_seed-1.json\)"):
        directory.records()


@pytest.mark.parametrize(("key", "value"), [("name", "../../x"), ("overrides", "seed=1"), ("number", "0"), ("x", 1)])
def test_an_invalid_record_is_an_error(key: str, value: object, directory: SweepDir) -> None:
    [record] = directory.register(jobs(1))
    (directory.records_dir / f"{record.name}.json").write_text(json.dumps(asdict(record) | {key: value}))
    with pytest.raises(UserError, match=r"invalid job record \(.*000_seed-1.json\)"):
        directory.records()


@pytest.mark.parametrize(
    ("code", "run_status", "status"),
    [
        (0, "finished", "finished"),
        (0, "interrupted", "interrupted"),
        (0, "running", "finished"),  # killed after its last step, then restarted with nothing left to do
        (143, "interrupted", "interrupted"),
        (138, "interrupted", "interrupted"),
        (1, "failed", "failed"),
        (2, None, "failed"),
        (137, "running", "failed"),
    ],
)
def test_the_status_follows_from_the_exit_code_and_the_run(
    directory: SweepDir, code: int, run_status: str | None, status: str
) -> None:
    [record] = directory.register(jobs(1))
    run_dir = directory.run_dir(record)
    run_dir.mkdir()
    if run_status:
        (run_dir / "run.json").write_text(json.dumps({"status": run_status, "reason": "X: y"}), encoding="utf-8")
    lines = [
        {"step": 10, "val/loss": 3.0, "val/bpb": 4.0},
        {"step": 20, "train/tokens": 640, "speed/tokens_per_s": 100.0},
        {"step": 20, "val/loss": 2.5, "val/bpb": 3.5},
        {"step": 30, "val/loss": None, "val/bpb": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text + '{"step": 40, "val/lo', encoding="utf-8")
    record.code = code
    record.take_results(run_dir)
    assert record.status == status
    assert (record.val_loss, record.val_bpb, record.tokens_per_s, record.step) == (2.5, 3.5, 100.0, 30)
    if status == "failed":
        assert record.error == ("X: y" if run_status in ("failed", "running") else f"exit code {code}")


def test_the_csv_lists_ended_jobs_and_at_the_end_all_jobs(directory: SweepDir) -> None:
    first, second, third, last = directory.register(jobs(1, 2, 3, 4))
    first.status, second.status, second.error, third.status = "finished", "failed", 'a "b", c', "running"
    for record in (first, second, third, last):
        directory.write(record)

    def rows(*, ended: bool) -> list[tuple[str, ...]]:
        directory.write_csv([first.name, second.name], ended=ended)
        with (directory.path / "sweep.csv").open(encoding="utf-8", newline="") as stream:
            return [(row["job"], row["status"], row["seed"], row["error"]) for row in csv.DictReader(stream)]

    known = [("0", "skipped", "1", ""), ("1", "failed", "2", 'a "b", c')]
    assert rows(ended=False) == known
    assert rows(ended=True) == [*known, ("2", "interrupted", "3", ""), ("3", "interrupted", "4", "not started")]


def test_the_table_as_plain_text(directory: SweepDir, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = directory.register(jobs(1, 2, 3))
    first.status, first.val_loss, first.val_bpb, first.tokens_per_s = "finished", 2.345678, 3.4, 12345.6
    second.status = "failed"
    sweep_table([first, second, third], [first.name], best=first).show()
    assert capsys.readouterr().out == (
        "job  overrides  status       val loss     bpb  tokens/s\n"
        "0    seed=1     skipped        2.3457  3.4000    12,346\n"
        "1    seed=2     failed\n"
        "2    seed=3     not started\n"
    )


def test_a_locked_directory_is_an_error(directory: SweepDir) -> None:
    handle = directory.lock()
    with pytest.raises(UserError, match="another sweep uses this directory"):
        SweepDir(directory.path).lock()
    os.close(handle)
    os.close(directory.lock())
