"""``python -m tinyllm.replay <run dir>``: repeat a run and compare it with the original bit for bit."""

from tinyllm.config.cli.flags import answer
from tinyllm.programs.replay_flags import parse_flags


def main() -> None:
    """Entry point of ``tinyllm-replay``."""
    answer(parse_flags, "tinyllm.programs.replay:replay")


if __name__ == "__main__":
    main()
