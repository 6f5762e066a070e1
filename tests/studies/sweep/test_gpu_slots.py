"""Multi-GPU jobs in parallel: each has GPUs of its own, and no more run than there are groups."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tinyllm.errors import UserError
from tinyllm.studies.sweep import gpu_slots
from tinyllm.studies.sweep.directory import SweepDir
from tinyllm.studies.sweep.gpu_slots import GpuSlots, equal_groups, slots_for
from tinyllm.studies.sweep.job import Job
from tinyllm.studies.sweep.job_record import JobRecord


def registered(directory: SweepDir, n: int) -> list[JobRecord]:
    directory.records_dir.mkdir(parents=True, exist_ok=True)
    return directory.register([Job(overrides=[f"seed={seed}"], swept=[f"seed={seed}"]) for seed in range(n)])


@pytest.mark.parametrize(
    ("devices", "size", "groups"),
    [("0123", 2, ["01", "23"]), ("01234", 2, ["01", "23"]), ("012", 1, ["0", "1", "2"]), ("57", 2, ["57"])],
)
def test_gpus_are_split_into_equal_groups(devices: str, size: int, groups: list[str]) -> None:
    assert equal_groups(devices, size) == [list(group) for group in groups]


@pytest.mark.parametrize(("devices", "there"), [([], "has none"), (["0", "1"], "has 2")])
def test_too_few_gpus_are_an_error(devices: list[str], there: str) -> None:
    with pytest.raises(
        UserError, match=rf"not enough GPUs for a job \(strategy.gpus_per_job=3\): this machine {there}"
    ):
        equal_groups(devices, 3)


@pytest.mark.slow
def test_a_job_runs_on_each_group_and_no_gpu_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, busy, most, lock = SweepDir(tmp_path), set[str](), [0], threading.Lock()
    both = threading.Barrier(2, timeout=30)
    ran: list[str] = []

    def train(slots: GpuSlots, directory: SweepDir, record: JobRecord, gpus: Sequence[str], error_file: Path) -> int:
        with lock:
            assert busy.isdisjoint(gpus)
            busy.update(gpus)
            most[0] = max(most[0], len(busy))
            ran.append(record.name)
        both.wait()  # a job ends only while another one runs
        with lock:
            busy.difference_update(gpus)
        if record.number == 3:
            error_file.write_text("error: three\n", encoding="utf-8")
            return 2
        return 0

    monkeypatch.setattr(GpuSlots, "train", train)
    records = registered(directory, 6)
    GpuSlots(groups=[["0", "1"], ["2", "3"]], nproc=2, flags=[]).run(directory, records)
    assert most[0] == 4
    assert sorted(ran) == [record.name for record in records]
    now = directory.records()
    assert [record.status for record in now] == ["finished"] * 3 + ["failed"] + ["finished"] * 2
    assert now[3].error == "error: three" and now[3].code == 2


def test_no_job_starts_after_a_stop_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = SweepDir(tmp_path)

    def train(slots: GpuSlots, directory: SweepDir, *others: object) -> int:
        directory.request_stop()
        return 143

    monkeypatch.setattr(GpuSlots, "train", train)
    GpuSlots(groups=[["0"]], nproc=1, flags=[]).run(directory, registered(directory, 3))
    assert [record.status for record in directory.records()] == ["interrupted", "waiting", "waiting"]


def test_a_job_is_started_with_its_gpus_run_directory_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, Any]]] = []

    class Ended:
        def __init__(self, arguments: Sequence[str], **options: Any) -> None:
            started.append((list(arguments), options))

        def poll(self) -> int:
            return 0

        wait = poll

    monkeypatch.setattr(gpu_slots, "TrainingProcess", Ended)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    slots = slots_for(
        OmegaConf.create({"strategy": {"gpus_per_job": 2, "nproc_per_node": None}}), ["--config-dir", "mine"]
    )
    assert slots is not None
    directory = SweepDir(tmp_path)
    [record] = registered(directory, 1)
    slots.run(directory, [record])
    [(arguments, options)] = started
    assert arguments == ["--config-dir", "mine", "seed=0", f"run.dir={tmp_path}/000_seed-0", "resume=auto"]
    assert options["nproc"] == 2 and options["append"]
    assert options["environ"]["CUDA_VISIBLE_DEVICES"] in ("4,5", "6,7")
    assert options["log"] == tmp_path / "jobs" / "000_seed-0.log"
    assert options["error_file"] == tmp_path / "jobs" / "000_seed-0.error"


def test_a_running_job_is_stopped_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = SweepDir(tmp_path)
    [record] = registered(directory, 1)

    class Running:
        def __init__(self, *arguments: object, **options: object) -> None:
            directory.request_stop()

        def poll(self) -> None:
            return None

        def stop(self) -> int:
            return 143

    monkeypatch.setattr(gpu_slots, "TrainingProcess", Running)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    slots = slots_for(OmegaConf.create({"strategy": {"gpus_per_job": 1, "nproc_per_node": 1}}), [])
    assert slots is not None
    slots.run(directory, [record])
    assert directory.records()[0].status == "interrupted"
