"""Which run a person means."""

from pathlib import Path

from tinyllm.errors import UserError

LATEST = "latest"


def required_run(run: str | None, *, program: str) -> str:
    """The value of ``run``; ``latest`` is the newest run below ``outputs/``.

    Raises:
        UserError: it was not given; the line says how to give it, with the newest run below ``outputs/`` if
            any.
    """
    if run and (run != LATEST or Path(run).exists()):
        return run
    newest = newest_run(Path("outputs"))
    if run and newest is not None:
        return str(newest)
    if newest is None:
        hint = f"python -m tinyllm.{program} run=<directory>; python -m tinyllm.train makes one, below outputs/"
    else:
        hint = f"python -m tinyllm.{program} run={newest} takes the newest one here"
    raise UserError("which run?", key="run", value=run, hint=hint)


def newest_run(outputs: Path) -> Path | None:
    """The run below ``outputs`` whose checkpoints changed last."""
    found = {
        path for depth in ("*", "*/*") for path in outputs.glob(f"{depth}/checkpoints") if any(path.glob("step-*"))
    }
    return max(found, key=lambda path: (path.stat().st_mtime, path)).parent if found else None
