"""The web server of the studio: NiceGUI behind :mod:`tinyllm.studio.access`, until a signal."""

import asyncio
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.types import ASGIApp

from tinyllm.programs.serve.server import Server
from tinyllm.studio.access import TOKEN, Access
from tinyllm.studio.pages import register
from tinyllm.studio.program import PASSWORD, Settings
from tinyllm.studio.studio import Studio
from tinyllm.utils.listening import is_loopback, listen
from tinyllm.utils.text import print_note

LARGEST_MESSAGE = 1 << 22
"""Bytes of a message that a browser sends over the websocket."""
RECONNECT_S = 30
"""Seconds for which the state of a page is kept whose connection was lost: the machine may have slept or be busy."""
GRACE_S = 2
"""Seconds in which open connections may end."""


def serve(settings: Settings) -> int:
    """Serve the studio until SIGTERM or Ctrl-C. Returns the exit code.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    with closing(listen(settings.host, settings.port)) as bound:
        port = bound.getsockname()[1]
        local = is_loopback(settings.host)

        def address(token: str) -> str:
            return f"http://{name_of(settings.host)}:{port}/?{TOKEN}={token}"

        access = Access(
            web_app(Studio(settings=settings)),
            port=port,
            password=settings.password,
            local=local,
            tell=lambda token: print_note(f"for another browser: {address(token)}"),
        )
        if not local:
            print_note(
                f"{settings.host} is reached from other machines: whoever has the password ({PASSWORD}) can start "
                f"programs here and read {settings.outputs} and the data folders; nothing is encrypted on the way"
            )
        bound.listen()  # a browser that is sent to the address before the pages are ready waits for them
        print_note(f"open {address(access.token)} (Ctrl-C ends the studio; runs go on)")
        Server(server_config(access)).run(sockets=[bound])
    return 0


def name_of(host: str) -> str:
    """What a browser calls an address that the studio listens on."""
    if is_loopback(host):
        return "localhost"
    if host in ("0.0.0.0", "::"):  # all addresses of this machine
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def web_app(studio: Studio) -> ASGIApp:
    """The pages as an application, without protection."""
    # NiceGUI finds its server by asking every object in memory for its class, at which an old name in torch warns.
    warnings.filterwarnings("ignore", message=".*torch.distributed.reduce_op", category=FutureWarning)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(studio.checker.examine([]))  # the first page finds the helper process ready
        yield
        warming.cancel()
        studio.checker.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    register(studio)
    ui.run_with(
        app,
        title="tinyllm studio",
        language="en-US",
        dark=studio.dark,
        favicon=FAVICON,
        reconnect_timeout=RECONNECT_S,
        show_welcome_message=False,
    )
    return app


FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#33658a"/>'
    '<path d="M7 9h18M16 9v15" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>'
)


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How the server runs: quietly, and with an end in order."""
    return uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws_max_size=LARGEST_MESSAGE,
        timeout_graceful_shutdown=GRACE_S,
    )
