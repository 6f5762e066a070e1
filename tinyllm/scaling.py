"""``python -m tinyllm.scaling scaling.budgets=[1e12,3e12,1e13]``: find the best model size for a FLOP budget."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-scaling``."""
    run("scaling", "tinyllm.studies.scaling.program:scaling")


if __name__ == "__main__":
    main()
