"""The page Compose: data, model and training as forms, their cost, and the command."""

from nicegui import ui

from tinyllm.studio.studio import Studio


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    ui.label(str(studio.settings.outputs))
