"""``python -m tinyllm.scaling scaling.budgets=[1e12,3e12,1e13]``: which model size is best for a FLOP budget?"""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-scaling``."""
    from tinyllm.config.cli.main import run

    run("scaling", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.studies.scaling.program import scaling

    return scaling(cfg, invocation)


if __name__ == "__main__":
    main()
