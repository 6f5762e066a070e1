"""Event files, read back by TensorBoard itself, hold what metrics.jsonl holds, even after a rewind."""

import resource
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator

from tests.support.recorded_callbacks import play, record
from tinyllm.loggers.tensorboard import UNITS, TensorBoard
from tinyllm.runs.metrics_log import read_metrics


def logger(**keys: Any) -> TensorBoard:
    return TensorBoard(**({"x_axis": "tokens", "dir": None} | keys))


def read(directory: Path) -> EventAccumulator:
    """All events of a directory; TensorBoard would otherwise keep a sample of them."""
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(directory)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(run_dir: Path, x_axis: str) -> dict[str, list[tuple[int, float]]]:
    """The curves of metrics.jsonl in TensorBoard's units and precision."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(run_dir / "metrics.jsonl"):
        for name, value in line.items():
            x = round(line[x_axis] * UNITS[x_axis])  # type: ignore[index]
            found.setdefault(name, []).append((x, float(np.float32(value))))
    return found


def samples(directory: Path) -> list[tuple[int, str]]:
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in read(directory).Tensors("samples/text_summary")
    ]


@pytest.mark.parametrize("x_axis", UNITS)
def test_event_files_hold_what_metrics_jsonl_holds(x_axis: str, tmp_path: Path) -> None:
    play(logger(x_axis=x_axis), tmp_path, until=12)
    assert curves(tmp_path / "tensorboard") == expected(tmp_path, x_axis)
    xs = [x for x, _ in curves(tmp_path / "tensorboard")["train/loss"]]
    assert len(set(xs)) == 12 and xs == sorted(xs)


def test_samples_and_configuration_are_logged_as_text(tmp_path: Path) -> None:
    play(logger(x_axis="step"), tmp_path, until=12)
    assert [(step, text.split()) for step, text in samples(tmp_path / "tensorboard")] == [
        (step, ["step", str(step), "sample", f"{step}:", "two", "<b>lines</b>"]) for step in (5, 10)
    ]
    (config,) = read(tmp_path / "tensorboard").Tensors("config/text_summary")
    assert '"lr": 0.001' in config.tensor_proto.string_val[0].decode()


def test_wall_time_follows_training_seconds(tmp_path: Path) -> None:
    saved, _ = play(logger(), tmp_path, until=3)
    play(logger(), tmp_path, start=3, until=6, state=saved)
    times = [event.wall_time for event in read(tmp_path / "tensorboard").Scalars("train/loss")]
    seconds = [record(step)["seconds"] for step in range(1, 7)]
    assert np.allclose(np.diff(times), np.diff(seconds), atol=1e-5)


@pytest.mark.parametrize("x_axis", UNITS)
def test_rewound_run_has_one_curve(x_axis: str, tmp_path: Path) -> None:
    """Killed at step 9 and resumed from step 6, as seen by both of TensorBoard's readers."""
    saved, _ = play(logger(x_axis=x_axis), tmp_path, until=6)
    play(logger(x_axis=x_axis), tmp_path, start=6, until=9, state=saved)
    play(logger(x_axis=x_axis), tmp_path, start=6, until=12, state=saved)
    directory = tmp_path / "tensorboard"
    assert curves(directory) == expected(tmp_path, x_axis)
    assert [text.split()[3] for _, text in samples(directory)] == ["5:", "10:"]
    shown = PluginAccumulator(str(directory)).Reload()
    assert len(shown.Tensors("train/loss")) == 12
    assert len(list(directory.iterdir())) == 3


@pytest.mark.parametrize("before", ["another axis", "no tensorboard"])
def test_resumed_run_with_another_logger_is_logged_from_its_first_record(before: str, tmp_path: Path) -> None:
    saved, _ = play(logger(x_axis="step"), tmp_path, until=6)
    state = saved if before == "another axis" else {}
    play(logger(x_axis="tokens"), tmp_path, start=6, until=9, state=state)
    assert curves(tmp_path / "tensorboard") == expected(tmp_path, "tokens")


def test_killed_run_loses_no_event(tmp_path: Path) -> None:
    """Every event is in the file before the next step, even if on_end is never called."""
    with mock.patch.object(TensorBoard, "on_end"):
        play(board := logger(), tmp_path, until=4)
        assert curves(tmp_path / "tensorboard") == expected(tmp_path, "tokens")
    assert board._file is not None
    board._file.close()


def test_full_disk_ends_the_file_but_not_the_run(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with mock.patch("tinyllm.runs.metrics_log.MetricsLog.write"):
            _, messages = play(logger(), tmp_path, until=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert messages == ["tensorboard: File too large; metrics.jsonl has every record"]
    assert len(curves(tmp_path / "tensorboard")["train/loss"]) > 1


def test_unwritable_directory_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    _, messages = play(logger(dir=str(tmp_path / "file")), tmp_path / "run", until=5)
    assert messages == ["tensorboard: File exists; metrics.jsonl has every record"]


def test_run_continues_without_tensorboard(tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"torch.utils.tensorboard": None}):
        saved, messages = play(logger(), tmp_path, until=5)
    assert len(messages) == 1 and "pip install 'tinyllm[tensorboard]'" in messages[0]
    assert saved == {}
