"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: is a killed and resumed run bitwise the same?"""

from typing import Any


def main() -> None:
    """Entry point of ``tinyllm-verify-resume``."""
    from tinyllm.config.cli.main import run

    run("verify_resume", _run)


def _run(cfg: Any, invocation: Any) -> int:
    from tinyllm.programs.verify_resume import verify_resume

    return verify_resume(cfg, invocation)


if __name__ == "__main__":
    main()
