"""The number of parallel runs, and the devices of each."""

import pytest

from tinyllm.errors import UserError
from tinyllm.studies.compare.run_pool import device_slots


def test_runs_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("tinyllm.studies.compare.run_pool.usable_cpus", lambda: 8)
    assert device_slots("auto", per_run=1, on_gpu=False) == [{}]
    assert device_slots(4, per_run=1, on_gpu=False) == [{"OMP_NUM_THREADS": "2"}] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device_slots(4, per_run=1, on_gpu=False) == [{}] * 4


def test_each_run_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5,7")
    groups = [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,5"}]
    assert device_slots("auto", per_run=2, on_gpu=True) == groups
    assert device_slots(1, per_run=2, on_gpu=True) == groups[:1]
    with pytest.raises(UserError, match=r"\(parallel=3\): at most 2: this machine has 5 GPUs, and a run takes 2"):
        device_slots(3, per_run=2, on_gpu=True)
