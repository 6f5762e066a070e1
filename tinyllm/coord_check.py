"""``python -m tinyllm.coord_check optimizer=muon``: do activations keep their size at every width?"""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-coord-check``."""
    from tinyllm.config.cli.main import run

    run("coord_check", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.studies.coord_check.program import coord_check

    return coord_check(cfg, invocation)


if __name__ == "__main__":
    main()
