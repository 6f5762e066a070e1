"""``python -m tinyllm.pairs run=<run directory> reward=[…]``: preferences from a model's own answers."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-pairs``."""
    run("pairs", "tinyllm.runs.listing:check_run", "tinyllm.programs.pairs:command")


if __name__ == "__main__":
    main()
