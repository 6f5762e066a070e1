"""The page Compare: arms, match, budget and seeds as a form, progress and report."""

from nicegui import ui

from tinyllm.studio.studio import Studio


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    ui.label(str(studio.settings.outputs))
