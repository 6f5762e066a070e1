"""``python -m tinyllm.describe model=large attn=gqa``: what a composition costs, without training it."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-describe``."""
    from tinyllm.config.cli.main import run

    run("describe", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.programs.describe import describe

    return describe(cfg, invocation)


if __name__ == "__main__":
    main()
