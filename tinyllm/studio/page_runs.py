"""The page Runs: the table of runs, and one run in detail."""

from nicegui import ui

from tinyllm.studio.studio import Studio


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    ui.label(str(studio.settings.outputs))
