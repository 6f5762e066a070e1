"""``python -m tinyllm.export run=<run directory> out=<new directory>``: export a model to Hugging Face format."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-export``."""
    run("export", "tinyllm.runs.listing:check_run", "tinyllm.programs.export:command")


if __name__ == "__main__":
    main()
