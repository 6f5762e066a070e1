"""``python -m tinyllm.generate run=<run directory> prompt="Once"``: text from a trained model."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-generate``."""
    from tinyllm.config.cli.main import run

    run("generate", _run, ends_with_reader=True)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.runs.listing import required_run

    run = required_run(cfg.run, program="generate")  # before torch is loaded
    from tinyllm.programs.generate import command

    return command(cfg, invocation, run)


if __name__ == "__main__":
    main()
