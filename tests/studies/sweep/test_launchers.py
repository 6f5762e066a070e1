"""Hydra's launchers: jobs in other processes, an imitation of SLURM, signals, memory."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_runs import SMALL, logged, train_elsewhere, write_corpus

pytestmark = pytest.mark.slow
ENDLESS = "trainer.max_steps=1000000"
SCRIPTS = {
    # Stores the script and runs the array's jobs one after the other in the background.
    "sbatch": """#!/bin/bash
cp "$1" "$(dirname "$0")/script.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
(
  for index in $(seq 0 "${last:-0}"); do
    SLURM_JOB_ID=70$index SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$index SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
    SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here bash "$1"
  done
) > "$(dirname "$0")/jobs.log" 2>&1 < /dev/null &
echo "Submitted batch job 7"
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
exec "$@"
""",
    "sacct": "#!/bin/bash\necho 'JobID|State|NodeList'\n",
}
"""SLURM's commands, as far as submitit needs them."""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', n_words=400)}"]


def rows() -> list[dict[str, str]]:
    with Path("swept", "sweep.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def start(*settings: str) -> "subprocess.Popen[str]":
    return train_elsewhere("-m", *SMALL, *settings, "hydra.sweep.dir=swept", start_new_session=True)


def wait_for(condition: Callable[[], object], running: "subprocess.Popen[str] | None" = None) -> None:
    for _ in range(1500):
        if condition():
            return
        assert running is None or running.poll() is None, running.communicate()
        time.sleep(0.2)
    raise AssertionError("the condition was never met")


def pid_of(name: str) -> int:
    """The process id of a running job."""
    pid = json.loads(Path("swept", "jobs", f"{name}.json").read_text(encoding="utf-8"))["pid"]
    assert isinstance(pid, int)
    return pid


def is_alive(pid: int) -> bool:
    """Whether a process is alive; a zombie is not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def both_are_training() -> bool:
    return all(logged(Path("swept", name), "train/loss") for name in ("000_seed-1", "001_seed-2"))


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.exhaustive), "submitit_local"])
def test_jobs_in_other_processes(corpus: list[str], launcher: str) -> None:
    settings = (*corpus, f"hydra/launcher={launcher}", "trainer.max_steps=2", "trainer.eval_every=2")
    running = start(*settings, "model.d_model=16,33,32")
    out, err = running.communicate(timeout=600)
    assert running.returncode == 2
    assert [row["status"] for row in rows()] == ["finished", "failed", "finished"]
    assert "not divisible" in rows()[1]["error"]
    assert err.splitlines() == [f"job 1 (model.d_model=33): failed, {rows()[1]['error']}"]
    assert "job 0 (model.d_model=16): finished, val loss" in out
    assert "step 2/2" not in out, "a job prints to its own log"
    assert "finished at step 2" in Path("swept/jobs/000_d_model-16.log").read_text(encoding="utf-8")
    again = start(*settings, "model.d_model=16,33,32")
    again.communicate(timeout=600)
    assert [row["status"] for row in rows()] == ["skipped", "failed", "skipped"]


def test_jobs_on_slurm(corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "slurm"
    place.mkdir()
    for name, text in SCRIPTS.items():
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    queue = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=big", "hydra.launcher.gpus_per_node=8")
    running = start(*corpus, *queue, "hydra.launcher.timeout_min=90", "trainer.max_steps=2", "seed=1,2")
    _, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    assert [row["status"] for row in rows()] == ["finished", "finished"]
    script = (place / "script.sh").read_text(encoding="utf-8")
    for line in ("--array=0-1%2", "--partition=big", "--gpus-per-node=8", "--time=90"):
        assert f"#SBATCH {line}" in script


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_a_signal_ends_the_jobs_with_a_checkpoint(corpus: list[str], number: signal.Signals) -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = start(*corpus, *parallel, ENDLESS, "seed=1,2,3")
    wait_for(both_are_training, running)
    workers = [pid_of("000_seed-1"), pid_of("001_seed-2")]
    running.send_signal(number)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 128 + number, err
    assert [row["status"] for row in rows()] == ["interrupted"] * 3
    assert [row["error"] for row in rows()] == ["", "", "not started"]
    assert "2    seed=3     not started" in out
    assert all(list(Path("swept", name, "checkpoints").glob("step-*")) for name in ("000_seed-1", "001_seed-2"))
    wait_for(lambda: not any(map(is_alive, workers)))


def test_jobs_do_not_outlive_a_killed_sweep(corpus: list[str]) -> None:
    running = start(*corpus, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", ENDLESS, "seed=1,2,3")
    wait_for(both_are_training, running)
    workers = [pid_of("000_seed-1"), pid_of("001_seed-2")]
    running.kill()
    wait_for(lambda: not any(map(is_alive, workers)))
    running.communicate(timeout=60)
    assert all(list(Path("swept", name, "checkpoints").glob("step-*")) for name in ("000_seed-1", "001_seed-2"))
    assert not Path("swept/002_seed-3").exists()


@pytest.mark.exhaustive
def test_a_killed_worker_does_not_stop_the_other_jobs(corpus: list[str]) -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = start(*corpus, *parallel, "trainer.max_steps=300", "trainer.eval_every=300", "seed=1,2,3")
    wait_for(lambda: logged(Path("swept/000_seed-1"), "train/loss"), running)
    os.kill(pid_of("000_seed-1"), signal.SIGKILL)
    _, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    assert [row["status"] for row in rows()] == ["finished"] * 3


def test_ctrl_c_ends_a_sweep_in_one_process(corpus: list[str]) -> None:
    running = start(*corpus, ENDLESS, "seed=1,2")
    wait_for(lambda: logged(Path("swept/000_seed-1"), "train/loss"), running)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 130
    assert [row["status"] for row in rows()] == ["interrupted", "interrupted"]
    assert list(Path("swept/000_seed-1/checkpoints").glob("step-*"))
    assert "continue with the same command" in out


@pytest.mark.exhaustive
def test_each_job_runs_in_several_ranks(corpus: list[str]) -> None:
    running = start(*corpus, "strategy=ddp", "strategy.nproc_per_node=2", "trainer.max_steps=2", "model.d_model=16,33")
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2, err
    assert [row["status"] for row in rows()] == ["finished", "failed"]
    assert "not divisible" in rows()[1]["error"]
    info = json.loads(Path("swept/000_d_model-16/run.json").read_text(encoding="utf-8"))["info"]
    assert info["world_size"] == 2


@pytest.mark.exhaustive
def test_memory_does_not_grow_from_job_to_job(corpus: list[str]) -> None:
    sizes = ("model.d_model=256", "model.n_layers=4", "model.n_heads=4", "model.d_ff=1024", "model.max_seq_len=64")
    steps = ("trainer.max_steps=3", "trainer.eval_every=3", "trainer.sample_every=3", "trainer.sample_tokens=8")
    command = ["tests.support.rss_of_jobs", "-m", *SMALL, *corpus, *sizes, *steps, "seed=1,2,3,4,5,6"]
    root = str(Path(__file__).resolve().parents[3])
    environ = os.environ | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-m", *command], env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    resident = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("RSS ")]
    assert len(resident) == 6
    assert resident[5] <= 1.1 * resident[1], resident
