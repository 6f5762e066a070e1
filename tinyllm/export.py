"""``python -m tinyllm.export run=<run directory> out=<new directory>``: a trained model for transformers."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-export``."""
    from tinyllm.config.cli.main import run

    run("export", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.runs.listing import required_run

    run = required_run(cfg.run, program="export")  # before torch is loaded
    from tinyllm.programs.export import command

    return command(cfg, invocation, run)


if __name__ == "__main__":
    main()
