"""``python -m tinyllm.evaluate run=<run directory>``: loss, perplexity and bits per byte on a whole split."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-evaluate``."""
    from tinyllm.config.cli.main import run

    run("evaluate", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.runs.listing import required_run

    run = required_run(cfg.run, program="evaluate")  # before torch is loaded
    from tinyllm.programs.evaluate import command

    return command(cfg, invocation, run)


if __name__ == "__main__":
    main()
