"""``python -m tinyllm.studio``: the flags, and what is refused before anything is loaded."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from tinyllm.config.cli.flags import Flags, answer
from tinyllm.config.targets import work_named
from tinyllm.errors import UserError
from tinyllm.utils.late_imports import is_installed
from tinyllm.utils.listening import is_loopback

PASSWORD = "TINYLLM_STUDIO_PASSWORD"
"""Environment variable: the password, where other users of the machine must not see it in the list of processes."""
SHORTEST_PASSWORD = 8
INSTALL = "pip install 'tinyllm[studio]'"
EPILOG = f"""\
The address that the program prints holds a token for one browser. Whatever is started in the studio is an ordinary
program that goes on when the studio ends, and whatever is started in a terminal shows up in the studio.

Beyond this machine (--host 0.0.0.0) a password is required, in the environment variable {PASSWORD}.
Everybody who has it can start programs here and read the runs and data folders, and nothing is encrypted on the way:
`ssh -L 8080:localhost:8080 <this machine>` with the default --host is safer.

examples:
  python -m tinyllm.studio
  python -m tinyllm.studio --outputs outputs --data ~/texts ~/more-texts
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the studio was started."""

    port: int = 8080
    host: str = "127.0.0.1"
    outputs: Path = Path("outputs")
    """The folder of run directories, created when something is started."""
    data: tuple[Path, ...] = ()
    """Folders whose files can be chosen as data."""
    config_dir: Path | None = None
    """A folder of option files besides ``conf/``."""
    password: str | None = None


def main() -> None:
    """Entry point of ``tinyllm-studio``."""
    answer(parse_flags, "tinyllm.studio.program:work")


def parse_flags() -> argparse.Namespace:
    """The flags of this process.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    text = "Compose, watch, compare and write with models in a browser."
    parser = Flags("studio", description=text, epilog=EPILOG)
    port = "port to listen on; 0: a free one; default: 8080"
    parser.add_argument("--port", type=int, default=8080, metavar="N", help=port)
    host = "address to listen on; default: 127.0.0.1, which only this machine reaches"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    outputs = "folder of run directories; default: outputs"
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), metavar="FOLDER", help=outputs)
    data = "folders whose files can be chosen as data; default: this folder"
    parser.add_argument("--data", type=Path, nargs="+", action="extend", default=[], metavar="FOLDER", help=data)
    config_dir = "folder of option files besides those of the package, as --config-dir of the other programs"
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help=config_dir)
    return parser.parse_args()


def work(flags: argparse.Namespace) -> int:
    """Check the flags, then serve the studio until a signal. Returns the exit code.

    Raises:
        UserError: a flag is wrong, or NiceGUI is not installed.
    """
    settings = checked(flags)
    if not is_installed("nicegui"):
        raise UserError("nicegui not installed", file="studio", hint=INSTALL)
    code: int = work_named("tinyllm.studio.server:serve")(settings)
    return code


def checked(flags: argparse.Namespace) -> Settings:
    """The settings that the flags and the environment give.

    Raises:
        UserError: a port out of range, a missing folder, or no password where one is needed.
    """
    if not 0 <= flags.port <= 65535:
        raise UserError("no such port", key="--port", value=flags.port, hint="0 to 65535; 0 takes a free one")
    for key, folders in (("--data", flags.data), ("--config-dir", [flags.config_dir] if flags.config_dir else [])):
        for folder in folders:
            if not folder.is_dir():
                raise UserError("no such folder", key=key, value=folder, hint="give an existing one")
    if flags.outputs.exists() and not flags.outputs.is_dir():
        raise UserError("not a folder", key="--outputs", value=flags.outputs, hint="give a folder, existing or new")
    password = os.environ.get(PASSWORD) or None
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise UserError("the password is too short", file=PASSWORD, hint=f"at least {SHORTEST_PASSWORD} characters")
    if password is None and not is_loopback(flags.host):
        hint = f"everybody who reaches this machine could start programs on it: set {PASSWORD}, or listen on 127.0.0.1"
        raise UserError("listening beyond this machine needs a password", key="--host", value=flags.host, hint=hint)
    return Settings(
        port=flags.port,
        host=flags.host,
        outputs=flags.outputs,
        data=tuple(flags.data) or (Path(),),
        config_dir=flags.config_dir,
        password=password,
    )
