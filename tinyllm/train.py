"""``python -m tinyllm.train``: train a model, or resume a run."""

from tinyllm.config.cli.main import run
from tinyllm.studies.sweep.job_run import sweep_jobs

# A run in several processes is launched, and waited for, without loading torch.
TASKS = "tinyllm.programs.launch:launched", "tinyllm.programs.train:train"


def main() -> None:
    """Entry point of ``tinyllm-train``."""
    look_up = "tinyllm.programs.resume:look_up"
    run("train", *TASKS, rewrite_settings=look_up, rewrite_only_for="resume", jobs=sweep_jobs())


if __name__ == "__main__":
    main()
