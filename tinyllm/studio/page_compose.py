"""The page Compose: data, model and training as forms, their cost, and the command."""

from pathlib import Path

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.studio.composer import Composer
from tinyllm.studio.starting_points import run_settings
from tinyllm.studio.studio import Studio

FOLLOW_S = 1.0
"""Seconds between two looks at what other browsers have changed."""


def show(studio: Studio) -> None:
    """Build the page inside the common frame. ``/?from=<run>`` starts from the settings of a run."""
    request = ui.context.client.request
    origin = request.query_params.get("from") if request is not None else None
    if origin:
        try:
            studio.draft.replace(run_settings(Path(origin), studio.settings))
            ui.navigate.history.replace("/")  # a reload keeps what is changed from here on
        except UserError as error:
            ui.notify(str(error), type="negative")
    composer = Composer(studio)
    ui.timer(0.01, composer.load, once=True)
    ui.timer(FOLLOW_S, composer.follow)
