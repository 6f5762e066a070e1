"""The four pages and their paths."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from tinyllm.studio import page_compare, page_compose, page_runs, page_write
from tinyllm.studio.layout import frame, share_style
from tinyllm.studio.studio import Studio

Show = Callable[[Studio], Awaitable[None] | None]
SHOW: dict[str, Show] = {
    "Compose": page_compose.show,
    "Runs": page_runs.show,
    "Compare": page_compare.show,
    "Write": page_write.show,
}
"""What each page shows inside the common frame."""
PATIENCE_S = 60.0
"""Seconds after which a page that is still being built is given up; a machine may be busy."""


def register(studio: Studio) -> None:
    """Register the pages with NiceGUI, whose registry is that of the process."""
    share_style()
    page_compare.serve_reports(studio)
    for name, show in SHOW.items():
        _register(studio, name, show)


def _register(studio: Studio, name: str, show: Show) -> None:
    async def page() -> None:
        with frame(studio, name):
            building = show(studio)
            if building is not None:
                await building

    ui.page(path_of(name), title=f"{name} · tinyllm studio", response_timeout=PATIENCE_S)(page)


def path_of(name: str) -> str:
    """The path of a page."""
    return "/" if name == "Compose" else f"/{name.lower()}"
