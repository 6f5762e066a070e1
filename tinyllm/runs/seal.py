"""The seal of a run: sha256 of its files, written when it ends, to detect files that were edited later.

It guards against mistakes only: anyone can forge it by editing ``run.json`` as well.
"""

from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import CONFIG, METRICS, OVERRIDES, SEAL, TEMPLATE, TOKENIZER
from tinyllm.utils.files import sha256

SEALED = (CONFIG, OVERRIDES, TOKENIZER, TEMPLATE, METRICS)
"""The files from which later programs compute."""


def sealed(run_dir: Path) -> dict[str, str]:
    """sha256 by name of the sealed files that exist."""
    return {name: sha256(run_dir / name) for name in SEALED if (run_dir / name).is_file()}


def check_seal(run_dir: Path) -> None:
    """Refuse a run directory whose files are not as the run left them.

    Raises:
        UserError: a file was changed, removed or added; or the run has no seal.
    """
    seal = read_run_json(run_dir).get(SEAL)
    if not isinstance(seal, dict) or not seal:
        hint = "the run was killed, or is from a version without seals"
        raise UserError("the run has no seal, so changes to its files cannot be detected", file=run_dir, hint=hint)
    now = sealed(run_dir)
    for name in SEALED:
        if seal.get(name) != now.get(name):
            what = "was removed" if name not in now else "was added" if name not in seal else "was changed"
            hint = "restore the old file, or remove the directory and train again"
            raise UserError(f"a file {what} after the run ended", file=run_dir / name, hint=hint)
