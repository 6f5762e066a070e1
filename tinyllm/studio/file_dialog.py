"""A dialog to choose a file or folder below the folders of the studio."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.studio.guard import check_path, folders
from tinyllm.studio.program import Settings
from tinyllm.utils.text import escape_control, quantity

MOST_SHOWN = 500
"""Entries of a folder that are listed."""


async def choose_path(settings: Settings, path: str) -> str | None:
    """Let a person choose; None if the dialog is closed.

    Args:
        path: where to begin, if it is a file or folder of the studio.
    """
    here: Path | None = None
    with ui.dialog() as dialog, ui.card().classes("file-dialog"):
        ui.label("Choose a file or folder").classes("title").props("role=heading aria-level=2")
        place = ui.element("div").classes("file-place")
        narrow = ui.input(placeholder="Filter").props('outlined dense clearable aria-label="Filter"').classes("full")
        entries = ui.list().props("dense bordered separator").classes("file-list")
        with ui.row().classes("file-buttons"):
            use = ui.button("Use this folder", color=None, on_click=lambda: dialog.submit(str(here)))
            use.props("flat no-caps")
            ui.button("Cancel", color=None, on_click=lambda: dialog.submit(None)).props("flat no-caps").classes("soft")

    async def go(folder: Path | None) -> None:
        try:
            found = [] if folder is None else await asyncio.to_thread(listing, folder, settings)
        except UserError as error:
            ui.notify(str(error), type="negative")
            return
        narrow.set_value("")
        show(folder, found)

    def show(folder: Path | None, found: list[Path]) -> None:
        place.clear()
        with place:
            ui.label("Folders of the studio" if folder is None else str(folder)).classes("mono")
        use.set_visibility(folder is not None)
        nonlocal here
        here = folder
        entries.clear()
        with entries:
            if folder is not None:
                above = folder.parent if is_below(folder.parent, settings) else None
                entry("..", "arrow_upward", lambda: go(above))
            else:
                for top in folders(settings):
                    entry(str(top.absolute()), "folder", partial(go, top))
            for path in found[:MOST_SHOWN]:
                if path.is_dir():
                    entry(path.name, "folder", partial(go, path))
                else:
                    entry(path.name, "description", partial(dialog.submit, str(path)), size(path))

    def entry(name: str, icon: str, act: Callable[[], Any], side: str = "") -> None:
        item = ui.item(on_click=act).mark(f"entry:{name}")
        item.bind_visibility_from(narrow, "value", lambda text: (text or "").lower() in name.lower())
        with item:
            with ui.item_section().props("avatar"):
                ui.icon(icon)
            with ui.item_section():
                ui.item_label(escape_control(name))
            if side:
                with ui.item_section().props("side"):
                    ui.item_label(side).classes("soft")

    begin = Path(path) if path else None
    begin = begin.parent if begin is not None and not begin.is_dir() else begin
    await go(begin if begin is not None and begin.is_dir() and is_below(begin, settings) else None)
    chosen: str | None = await dialog
    dialog.delete()
    return chosen


def listing(folder: Path, settings: Settings) -> list[Path]:
    """The entries of a folder, folders first, without hidden ones.

    Raises:
        UserError: it is not one of the studio's, or cannot be read.
    """
    check_path(str(folder), settings, key="folder")
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")]
        return sorted(found, key=lambda path: (not path.is_dir(), path.name))
    except OSError as error:
        raise UserError("the folder cannot be read", file=folder, hint=str(error.strerror)) from error


def is_below(path: Path, settings: Settings) -> bool:
    """Whether a path is below a folder of the studio."""
    try:
        check_path(str(path.absolute()), settings, key="folder")
    except UserError:
        return False
    return True


def size(path: Path) -> str:
    """The size of a file as text; "" if it is gone."""
    try:
        return quantity(path.stat().st_size, "B")
    except OSError:
        return ""
