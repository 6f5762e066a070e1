"""Where the configuration lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path


def conf_dir() -> Path:
    """The absolute directory of the shipped yaml files."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"tinyllm's conf directory is missing beside {package}")
