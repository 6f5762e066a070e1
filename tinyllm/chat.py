"""``python -m tinyllm.chat run=<run directory>``: talk to a model that was trained on conversations."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-chat``."""
    run("chat", "tinyllm.runs.listing:check_run", "tinyllm.programs.chat:command", ends_with_reader=True)


if __name__ == "__main__":
    main()
