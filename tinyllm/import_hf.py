"""``python -m tinyllm.import_hf path=<directory of Hugging Face> out=<new run directory>``: a model from elsewhere."""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-import-hf``."""
    from tinyllm.config.cli.main import run

    run("import_hf", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.programs.import_hf import command

    return command(cfg, invocation)


if __name__ == "__main__":
    main()
