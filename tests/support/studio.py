"""A studio in this process: its pages for a simulated user, and its guard for plain HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from tinyllm.studio.checker import Checker
from tinyllm.studio.checking import examine
from tinyllm.studio.program import Settings
from tinyllm.studio.report import Report

PATIENCE_S = 180.0
"""Seconds after which a story gives up; a machine may be busy."""


def use(story: Callable[[Any], Awaitable[None]], settings: Any = None, /, **more: Any) -> None:
    """Let a simulated user, NiceGUI's ``User``, live a story in a studio.

    NiceGUI's own pytest plugin is not loaded: it needs a plugin for asynchronous tests, and changes all other tests.

    Args:
        settings: of the studio, or the ``Studio`` itself; else ``more`` gives them.
    """
    pytest.importorskip("nicegui", reason="needs the extra studio")
    from nicegui import Client
    from nicegui.testing.user_simulation import user_simulation

    from tinyllm.studio.pages import register
    from tinyllm.studio.studio import Studio

    async def live() -> None:
        async with user_simulation() as user:
            try:
                studio = settings if isinstance(settings, Studio) else Studio(settings=settings or Settings(**more))
                studio.checker = CheckerHere(studio.settings)
                register(studio)
                # A simulated browser never connects: NiceGUI would forget its page after a minute, on a busy machine
                # while it is being opened.
                ages = Client.prune_instances.__func__.__kwdefaults__
                with mock.patch.dict(ages, client_age_threshold=float("inf")):
                    async with asyncio.timeout(PATIENCE_S):
                        await story(user)
            finally:
                # The simulation would drop the modules of all registered pages, and with them the package.
                Client.page_routes.clear()

    asyncio.run(live())


class CheckerHere(Checker):
    """Checks settings in this process."""

    async def examine(self, arguments: Sequence[str]) -> Report:
        return examine(arguments, self.settings)


async def until(holds: Callable[[], object]) -> None:
    """Wait in a story until something holds; :func:`use` limits how long."""
    while not holds():
        await asyncio.sleep(0.02)


def requests(app: Any, *calls: tuple[Any, ...], **client: Any) -> list[httpx.Response]:
    """The responses of an ASGI application to one client's requests: each a method, a path and keyword arguments."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080", **client) as browser:
            return [await browser.request(method, path, **(more[0] if more else {})) for method, path, *more in calls]

    return asyncio.run(ask())


def folder(tmp_path: Path) -> Settings:
    """Settings of a studio whose outputs are in an empty folder."""
    return Settings(outputs=tmp_path / "outputs", data=(tmp_path,))
