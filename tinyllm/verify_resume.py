"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: is a killed and resumed run bitwise the same?"""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-verify-resume``."""
    run("verify_resume", "tinyllm.programs.verify_resume:verify_resume")


if __name__ == "__main__":
    main()
