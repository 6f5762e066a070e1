"""The page Write: texts of one or two models, side by side."""

from nicegui import ui

from tinyllm.studio.studio import Studio


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    ui.label(str(studio.settings.outputs))
