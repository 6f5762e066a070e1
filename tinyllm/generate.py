"""``python -m tinyllm.generate run=<run directory> prompt="Once"``: sample text from a trained model."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-generate``."""
    run("generate", "tinyllm.runs.listing:check_run", "tinyllm.programs.generate:command", ends_with_reader=True)


if __name__ == "__main__":
    main()
