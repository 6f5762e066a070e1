"""``python -m tinyllm.describe model=large attn=gqa``: show the cost of a composition without building it."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-describe``."""
    run("describe", "tinyllm.programs.describe:describe")


if __name__ == "__main__":
    main()
