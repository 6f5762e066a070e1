"""``python -m tinyllm.coord_check optimizer=muon``: check that activations keep their size at every width."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-coord-check``."""
    run("coord_check", "tinyllm.studies.coord_check.program:coord_check")


if __name__ == "__main__":
    main()
