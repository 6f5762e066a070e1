"""How many runs go on at once, and what each of them is given."""

import pytest

from tinyllm.errors import UserError
from tinyllm.studies.compare.run_pool import places


def test_on_a_cpu_runs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("tinyllm.studies.compare.run_pool.usable_cpus", lambda: 8)
    assert list(places("auto", per_run=1, on_gpu=False).environments) == [{}]
    assert list(places(4, per_run=1, on_gpu=False).environments) == [{"OMP_NUM_THREADS": "2"}] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert list(places(4, per_run=1, on_gpu=False).environments) == [{}] * 4


def test_every_run_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5,7")
    parts = [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,5"}]
    assert list(places("auto", per_run=2, on_gpu=True).environments) == parts
    assert list(places(1, per_run=2, on_gpu=True).environments) == parts[:1]
    with pytest.raises(UserError, match=r"\(parallel=3\): 2 at most: this machine has 5 GPUs, and a run takes 2"):
        places(3, per_run=2, on_gpu=True)
