"""Growing metrics files are read once, byte by byte new; curves are thinned without losing what the eye would see."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs.test_metrics_log import DAMAGED, line
from tinyllm.runs.metrics_log import LONGEST_LINE, RecordParser, read_metrics, record_of
from tinyllm.runs.metrics_tail import MetricsTail
from tinyllm.runs.thinning import m4, smoothed

NAN = float("nan")
LINES = [*DAMAGED.values(), line(7), b"\n", b"  \n", b'{"step": 5, "a": NaN}\n', b'{"step": 5, "a": 1e999}\n']
LINES += [b'{"step": 3},\n', b'{"step": 1}, {"step": 2}\n', b'{"step": 1, "a": [{}\n', b"{} ]}\n", b'{"a": {"b": 1}\n']
LINES += [b'{"step": true}\n']
LINES += [
    b' "step": 2}\n',
    b'{"a": "}\n',
    b'{", "step": 1}\n',
    b'{"step": 1' + b"0" * 400 + b"}\n",
    b'{"step": true}\n',
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(LINES), max_size=6), st.lists(st.integers(1, 400), max_size=12))
def test_pieces_give_the_records_of_single_lines(lines: list[bytes], cuts: list[int]) -> None:
    text = b"".join(lines)
    parser, found, start = RecordParser(), [], 0
    for cut in cuts:
        found += parser.feed(text[start : start + cut])
        start += cut
    found += parser.feed(text[start:])
    single = [part for part in text.split(b"\n") if len(part) < LONGEST_LINE]
    assert found == [record for record in map(record_of, single) if record is not None]


def test_only_new_bytes_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert not tail.poll() and tail.rows == 0
    path.write_bytes(b"".join(map(line, range(1, 1001))))
    assert tail.poll() and tail.rows == 1000 and tail.parsed == path.stat().st_size
    assert not tail.poll() and tail.parsed == path.stat().st_size
    with path.open("ab") as file:
        file.write(line(1001, more=2.5) + b'{"step": 1002, "tra')
    assert tail.poll() and tail.rows == 1001 and tail.parsed == path.stat().st_size
    assert tail.last("more") == 2.5
    with path.open("ab") as file:
        file.write(b'in/loss": 0.25}\n')
    assert tail.poll() and tail.last("train/loss") == 0.25 and tail.lowest("train/loss") == 0.25
    assert tail.parsed == path.stat().st_size
    assert tail.series("train/loss")[0].tolist() == [record["step"] for record in read_metrics(path)]


@pytest.mark.parametrize("same_inode", [False, True])
def test_a_resumed_run_replaces_its_file(tmp_path: Path, same_inode: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + line(3))
    tail = MetricsTail(path)
    tail.poll()
    content = line(1, other=1.0) + line(2) + line(4) + line(5) + line(6)
    if same_inode:
        path.write_bytes(content)
    else:
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", path)
    assert tail.poll()
    assert tail.series("train/loss")[0].tolist() == [1, 2, 4, 5, 6] and tail.names == ["train/loss", "other"]
    path.unlink()
    assert tail.poll() and tail.rows == 0 and tail.names == []


def test_axes_gaps_and_numbers_beyond_floats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records: list[dict[str, object]] = [
        {"step": 1, "tokens": 10, "a": 1.0},
        {"step": 2, "tokens": 20, "a": NAN, "b": 5},
        {"step": 3, "b": 10**400},
        {"step": 4, "tokens": 40, "a": None},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tail = MetricsTail(path)
    tail.poll()
    x, y = tail.series("a", "tokens")
    assert x.tolist() == [10, 20, 40] and np.array_equal(y, [1, NAN, NAN], equal_nan=True)
    x, y = tail.series("b", "tokens")  # a record without a token count takes that of the one before
    assert x.tolist() == [20, 20] and np.array_equal(y, [5, NAN], equal_nan=True)
    assert tail.series("a", "flops")[0].tolist() == tail.series("none")[0].tolist() == []
    assert tail.last("a") == 1.0 and tail.last("none") is None and tail.lowest("none") is None


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.just(NAN), st.floats(-1e6, 1e6)), min_size=1, max_size=300),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_thinned_curves_keep_ends_extremes_and_gaps_of_every_pixel_column(
    values: list[float], columns: int, seed: int
) -> None:
    y = np.array(values)
    x = np.sort(np.random.default_rng(seed).integers(0, 500, len(y)).astype(float))
    kept = m4(x, y, columns)
    assert (np.diff(kept) > 0).all() and len(kept) <= 5 * columns
    span = (x[-1] - x[0]) or 1.0
    for column in range(columns):
        inside = [i for i in range(len(x)) if min(int((x[i] - x[0]) / span * columns), columns - 1) == column]
        finite, chosen = [i for i in inside if y[i] == y[i]], [i for i in inside if i in set(kept)]
        if finite:
            assert finite[0] in kept and finite[-1] in kept
            shown = [y[i] for i in chosen if y[i] == y[i]]
            assert (min(shown), max(shown)) == (min(y[finite]), max(y[finite]))
        assert any(y[i] != y[i] for i in chosen) == any(y[i] != y[i] for i in inside)


def test_smoothing_is_the_debiased_average_and_leaves_gaps() -> None:
    y = np.array([1.0, NAN, 3.0, 2.0])
    first, second = (0.5 * 0.5 * 1 + 0.5 * 3) / 0.75, (0.25 * 0.5 * 1 + 0.5 * 0.5 * 3 + 0.5 * 2) / 0.875
    assert np.allclose(smoothed(y, 0.5), [1.0, NAN, first, second], equal_nan=True)
    assert smoothed(y, 0.0) is y
