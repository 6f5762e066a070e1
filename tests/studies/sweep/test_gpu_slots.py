"""Several multi-GPU jobs at once: who gets which GPUs, and no more at once than there are."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tinyllm.errors import UserError
from tinyllm.studies.sweep import gpu_slots as slots
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.gpu_slots import Slots, parts_of, slots_for
from tinyllm.studies.sweep.job_record import Job, Record


def enlisted(directory: SweepDir, n: int) -> list[Record]:
    directory.records.mkdir(parents=True, exist_ok=True)
    return directory.enlist([Job(overrides=[f"seed={seed}"], swept=[f"seed={seed}"]) for seed in range(n)])


@pytest.mark.parametrize(
    ("devices", "size", "parts"),
    [("0123", 2, ["01", "23"]), ("01234", 2, ["01", "23"]), ("012", 1, ["0", "1", "2"]), ("57", 2, ["57"])],
)
def test_gpus_are_dealt_out_in_equal_parts(devices: str, size: int, parts: list[str]) -> None:
    assert parts_of(devices, size) == [list(part) for part in parts]


@pytest.mark.parametrize(("devices", "there"), [([], "has none"), (["0", "1"], "has 2")])
def test_too_few_gpus_are_said(devices: list[str], there: str) -> None:
    with pytest.raises(
        UserError, match=rf"not enough GPUs for a job \(strategy.gpus_per_job=3\): this machine {there}"
    ):
        parts_of(devices, 3)


@pytest.mark.slow
def test_as_many_jobs_at_once_as_there_are_parts_and_each_gpu_has_one(tmp_path: Path) -> None:
    directory, busy, most, lock = SweepDir(tmp_path), set[str](), [0], threading.Lock()
    both = threading.Barrier(2, timeout=30)
    ran: list[str] = []

    def start(where: SweepDir, record: Record, part: Sequence[str], error_file: Path) -> int:
        with lock:
            assert busy.isdisjoint(part)
            busy.update(part)
            most[0] = max(most[0], len(busy))
            ran.append(record.name)
        both.wait()  # a job ends only while another one runs
        with lock:
            busy.difference_update(part)
        if record.number == 3:
            error_file.write_text("error: three\n", encoding="utf-8")
            return 2
        return 0

    records = enlisted(directory, 6)
    Slots(parts=[["0", "1"], ["2", "3"]], start=start).run(directory, records)
    assert most[0] == 4
    assert sorted(ran) == [record.name for record in records]
    now = directory.all()
    assert [record.status for record in now] == ["finished"] * 3 + ["failed"] + ["finished"] * 2
    assert now[3].error == "error: three" and now[3].code == 2


def test_no_job_starts_once_the_sweep_is_to_end(tmp_path: Path) -> None:
    directory = SweepDir(tmp_path)

    def start(where: SweepDir, record: Record, part: Sequence[str], error_file: Path) -> int:
        where.stop()
        return 143

    Slots(parts=[["0"]], start=start).run(directory, enlisted(directory, 3))
    assert [record.status for record in directory.all()] == ["interrupted", "waiting", "waiting"]


def test_a_job_is_started_with_its_gpus_directory_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, Any]]] = []

    class Ended:
        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

    def start(arguments: Sequence[str], **settings: Any) -> Ended:
        started.append((list(arguments), settings))
        return Ended()

    monkeypatch.setattr(slots, "TrainingProcess", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    cfg = OmegaConf.create({"strategy": {"gpus_per_job": 2, "nproc_per_node": None}})
    found = slots_for(cfg, ["--config-dir", "mine"])
    assert found is not None
    directory = SweepDir(tmp_path)
    [record] = enlisted(directory, 1)
    found.run(directory, [record])
    [(arguments, settings)] = started
    assert arguments == ["--config-dir", "mine", "seed=0", f"run.dir={tmp_path}/000_seed-0", "resume=auto"]
    assert settings["nproc"] == 2
    assert settings["environ"]["CUDA_VISIBLE_DEVICES"] in ("4,5", "6,7")
    assert settings["log"] == tmp_path / "jobs" / "000_seed-0.log" and settings["append"]


def test_a_running_job_is_asked_to_stop_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = SweepDir(tmp_path)
    [record] = enlisted(directory, 1)

    class Running:
        def poll(self) -> int | None:
            directory.stop()
            return None

        def stop(self) -> int:
            return 143

    monkeypatch.setattr(slots, "TrainingProcess", lambda *arguments, **keywords: Running())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = slots_for(OmegaConf.create({"strategy": {"gpus_per_job": 1, "nproc_per_node": 1}}), [])
    assert found is not None
    found.run(directory, [record])
    assert directory.all()[0].status == "interrupted"
