"""``python -m tinyllm.evaluate run=<run directory>``: compute loss, perplexity and bits per byte on a split."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-evaluate``."""
    run("evaluate", "tinyllm.runs.listing:check_run", "tinyllm.programs.evaluate:command")


if __name__ == "__main__":
    main()
