"""``python -m tinyllm.replay <run dir>``: train a recorded run again; are the numbers bitwise the same?"""


def main() -> None:
    """Entry point of ``tinyllm-replay``."""
    from tinyllm.config.cli.flags import answer

    answer(_run)


def _run() -> int:
    from tinyllm.programs.replay_flags import parse_flags

    flags = parse_flags()  # before torch is loaded
    from tinyllm.programs.replay import replay

    return replay(flags)


if __name__ == "__main__":
    main()
