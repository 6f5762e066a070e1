"""``python -m tinyllm.replay <run dir>``: train a recorded run again; are the numbers bitwise the same?"""

from tinyllm.config.cli.flags import answer
from tinyllm.programs.replay_flags import parse_flags


def main() -> None:
    """Entry point of ``tinyllm-replay``."""
    answer(parse_flags, "tinyllm.programs.replay:replay")


if __name__ == "__main__":
    main()
