"""``python -m tinyllm.import_hf path=<directory> out=<new run directory>``: convert a Hugging Face model to a run."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-import-hf``."""
    run("import_hf", "tinyllm.programs.import_hf:command")


if __name__ == "__main__":
    main()
