"""``python -m tinyllm.prepare dataset=… tokenizer=…``: tokenize a corpus into the shared cache."""

import sys

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-prepare``."""
    sys.argv[1:] = ["stats=true" if argument == "--stats" else argument for argument in sys.argv[1:]]
    run("prepare", "tinyllm.programs.prepare:command")


if __name__ == "__main__":
    main()
