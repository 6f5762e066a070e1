"""``python -m tinyllm.prepare dataset=… tokenizer=…``: tokenize once into the shared cache."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-prepare``."""
    from tinyllm.config.cli.main import run

    run("prepare", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.programs.prepare import command

    return command(cfg, invocation)


if __name__ == "__main__":
    main()
