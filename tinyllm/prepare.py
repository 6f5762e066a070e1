"""``python -m tinyllm.prepare dataset=… tokenizer=…``: tokenize a corpus into the shared cache."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-prepare``."""
    run("prepare", "tinyllm.programs.prepare:command")


if __name__ == "__main__":
    main()
