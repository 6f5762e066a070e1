"""``python -m tinyllm.describe model=large attn=gqa``: what a composition costs, without training it."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-describe``."""
    run("describe", "tinyllm.programs.describe:describe")


if __name__ == "__main__":
    main()
