"""``python -m tinyllm.train``: train a model, or continue one."""

from tinyllm.programs.train import main as train
from tinyllm.studies.sweep.jobs import jobs


def main() -> None:
    """Entry point of ``tinyllm-train``."""
    train(jobs())


if __name__ == "__main__":
    main()
