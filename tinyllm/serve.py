"""``python -m tinyllm.serve run=<run directory>``: serve a trained model over HTTP, as OpenAI's API."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-serve``."""
    run("serve", "tinyllm.programs.serve.check:check", "tinyllm.programs.serve.program:command")


if __name__ == "__main__":
    main()
