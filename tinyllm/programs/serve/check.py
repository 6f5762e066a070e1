"""What the server needs before torch and the web framework are loaded."""

import os
from typing import Any

from tinyllm.errors import UserError
from tinyllm.runs.listing import required_run
from tinyllm.utils.late_imports import is_installed
from tinyllm.utils.listening import is_loopback

LIBRARIES = ("fastapi", "uvicorn")
INSTALL = "pip install 'tinyllm[serve]'"
API_KEY = "TINYLLM_API_KEY"
"""Environment variable: the API key, where other users of the machine must not see it in the list of processes."""


def check(cfg: Any, invocation: Any) -> None:
    """Refuse what cannot be served: no model, no libraries, an open door.

    Raises:
        UserError: in each of these cases.
    """
    served_runs(cfg, program=invocation.program)
    missing = [name for name in LIBRARIES if not is_installed(name)]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed", file="serve", hint=INSTALL)
    api_key(cfg.serve.api_key)
    host = cfg.serve.host
    if not is_loopback(host) and api_key(cfg.serve.api_key) is None:
        hint = f"anybody who reaches this machine could use the model: set {API_KEY}, or listen on 127.0.0.1"
        raise UserError(
            "listening beyond this machine needs an API key", key="serve.host", value=cfg.serve.host, hint=hint
        )


def served_runs(cfg: Any, *, program: str) -> dict[str, str]:
    """The run of each name that is served; the name of a single run is that of its directory.

    Raises:
        UserError: none is given, both keys are, or ``runs`` is no mapping from names to directories.
    """
    if cfg.runs is None:
        run = required_run(cfg.run, program=program)
        return {os.path.basename(os.path.abspath(run)) or "model": run}
    if cfg.run is not None:
        raise UserError("run and runs are mutually exclusive", key="run", value=cfg.run, hint="leave one out")
    runs = dict(cfg.runs) if hasattr(cfg.runs, "items") else {}
    if not runs or not all(isinstance(run, str) and run and str(name) for name, run in runs.items()):
        hint = "give each model a name: runs={small:outputs/a,large:outputs/b}"
        raise UserError("not a mapping from names to runs", key="runs", value=cfg.runs, hint=hint)
    return {str(name): required_run(run, program=program) for name, run in runs.items()}


def api_key(key: str | None) -> str | None:
    """The API key of the configuration, else of the environment; None: clients need none.

    Raises:
        UserError: it has characters that an HTTP header cannot carry.
    """
    key = key or os.environ.get(API_KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        hint = "use printable ASCII characters, without spaces around them"
        raise UserError("the API key cannot be sent in an HTTP header", key="serve.api_key", value="…", hint=hint)
    return key
