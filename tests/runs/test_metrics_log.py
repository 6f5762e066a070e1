"""metrics.jsonl after a crash: readable records stay, damaged lines are counted and the file is kept."""

import json
from pathlib import Path

import pytest

from tinyllm.runs.metrics_log import MetricsLog, read_metrics, scan, source_keys


def line(step: int, **values: object) -> bytes:
    return json.dumps({"step": step, "train/loss": 1.0, **values}).encode() + b"\n"


DAMAGED: dict[str, bytes] = {
    "half a line": b'{"step": 2, "trai\n',
    "zeros": b"\0" * 100 + b"\n",
    "zeros before a record": b"\0" * 4096 + line(2),
    "not UTF-8": b'{"step": 2, "\xff": 1}\n',
    "brackets": b"[" * 100_000 + b"\n",
    "a list": b"[1, 2]\n",
    "a number": b"3\n",
    "no step": b'{"train/loss": 1.0}\n',
    "a step of text": b'{"step": "2"}\n',
    "a value of text": line(2, what="x"),
    "a value that is a list": line(2, what=[1]),
    "two records in one line": line(2)[:-1] + line(3),
    "a line of three megabytes": b'{"step": 2, "' + b"a" * 3_000_000 + b'": 1}\n',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_does_not_affect_others(name: str, tmp_path: Path) -> None:
    path, before = tmp_path / "metrics.jsonl", line(1) + DAMAGED[name] + line(4) + line(5) + line(9)
    path.write_bytes(before + b'{"step": 10, "tra')
    records, damaged = scan(path)
    assert ([record["step"] for record in records], damaged) == ([1, 4, 5, 9], 1)
    messages: list[str] = []
    log = MetricsLog(path, step=5, tell=messages.append)
    log.write({"step": 6, "val/loss": float("nan")})
    log.close()
    assert read_metrics(path) == [json.loads(line(step)) for step in (1, 4, 5)] + [{"step": 6, "val/loss": None}]
    backup = tmp_path / "metrics.damaged-1.jsonl"
    assert messages == [f"1 line of metrics.jsonl could not be read and was left out; the original file: {backup}"]
    assert backup.read_bytes() == before + b'{"step": 10, "tra'


def test_each_damaged_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "metrics.damaged-1.jsonl").symlink_to(tmp_path / "outside")
    for number in (2, 3):
        path.write_bytes(b"x\ny\n" + line(number))
        messages: list[str] = []
        MetricsLog(path, step=9, tell=messages.append).close()
        assert messages[0].startswith("2 lines") and messages[0].endswith(f"metrics.damaged-{number}.jsonl")
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_torn_last_line_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:-5])
    log = MetricsLog(path, step=2, tell=lambda text: pytest.fail(text))
    log.close()
    assert path.read_bytes() == line(1)
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_nan_and_infinity_are_read_as_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": NaN, "b": -Infinity, "c": 1e999, "d": 2.5}\n\n')
    assert scan(path) == ([{"step": 1, "a": None, "b": None, "c": None, "d": 2.5}], 0)


def test_the_loss_on_pairs_is_no_source() -> None:
    mixed = ["val/loss", "val/prose/loss", "val/pref/loss"]
    assert source_keys(mixed, "val", "loss") == {"prose": "val/prose/loss", "pref": "val/pref/loss"}
    assert source_keys(["val/loss", "val/pref/loss", "val/pref/accuracy"], "val", "loss") == {}
