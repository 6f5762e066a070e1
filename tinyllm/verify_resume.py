"""``python -m tinyllm.verify_resume optimizer=muon kills=3``: check that resuming after a kill changes no bit."""

from tinyllm.config.cli.main import run


def main() -> None:
    """Entry point of ``tinyllm-verify-resume``."""
    run("verify_resume", "tinyllm.programs.verify_resume:verify_resume")


if __name__ == "__main__":
    main()
