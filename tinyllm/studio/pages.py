"""The four pages and their paths."""

from collections.abc import Callable

from nicegui import ui

from tinyllm.studio import page_compare, page_compose, page_runs, page_write
from tinyllm.studio.layout import frame, share_style
from tinyllm.studio.studio import Studio

SHOW: dict[str, Callable[[Studio], None]] = {
    "Compose": page_compose.show,
    "Runs": page_runs.show,
    "Compare": page_compare.show,
    "Write": page_write.show,
}
"""What each page shows inside the common frame."""


def register(studio: Studio) -> None:
    """Register the pages with NiceGUI, whose registry is that of the process."""
    share_style()
    page_compare.serve_reports(studio)
    for name, show in SHOW.items():
        _register(studio, name, show)


def _register(studio: Studio, name: str, show: Callable[[Studio], None]) -> None:
    def page() -> None:
        with frame(studio, name):
            show(studio)

    ui.page(path_of(name), title=f"{name} · tinyllm studio")(page)


def path_of(name: str) -> str:
    """The path of a page."""
    return "/" if name == "Compose" else f"/{name.lower()}"
