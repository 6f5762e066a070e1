"""``python -m tinyllm.cache``: list the token caches, and remove old ones."""

from tinyllm.config.cli.flags import answer
from tinyllm.programs.cache_flags import parse_flags


def main() -> None:
    """Entry point of ``tinyllm-cache``."""
    answer(parse_flags, "tinyllm.programs.cache:work")


if __name__ == "__main__":
    main()
