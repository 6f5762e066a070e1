"""The page of a run that is not there: it is just starting, it failed before it had a directory, or it never was."""

import asyncio

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.studio.processes import Outcome, Start
from tinyllm.studio.studio import Studio
from tinyllm.utils.text import escape_control

REFRESH_S = 0.5


class StartingRun:
    """Waits for a run, and then shows it.

    Args:
        name: the run's id, its path below the outputs.
    """

    def __init__(self, studio: Studio, name: str) -> None:
        self.studio, self.name = studio, name
        with ui.element("section").classes("card"):
            ui.link("All runs", "/runs").classes("back small")
            self.title = ui.label().props("role=heading aria-level=1").classes("run-title")
            self.text = ui.label().classes("soft").props("role=status")
            self.error = ui.label().classes("bad").props("role=alert").mark("start-error")
            self.stop = ui.button("Stop", icon="stop", color=None, on_click=self._stop)
            self.stop.props('outline dense no-caps title="Ends before it has begun"').classes("run-action").mark("stop")
        self._show(*self._look())
        ui.timer(REFRESH_S, self.refresh)

    async def refresh(self) -> None:
        """Show the run once it is there."""
        if await asyncio.to_thread(self.studio.catalogue.row, self.name) is not None:
            ui.navigate.reload()
        else:
            self._show(*await asyncio.to_thread(self._look))

    def _look(self) -> tuple[Start | None, Outcome | None]:
        start = self.studio.processes.start_of(self.studio.settings.outputs / self.name)
        return start, None if start is None else self.studio.processes.outcome(start)

    def _show(self, start: Start | None, outcome: Outcome | None) -> None:
        if start is None or outcome is None:
            self.stop.set_visibility(False)
            self.title.set_text("No such run")
            self.text.set_text(f"There is no run {escape_control(self.name)} below {self.studio.settings.outputs}.")
            return
        self.title.set_text(escape_control(self.name.rpartition("/")[2]))
        ended = "It ended before it had a directory." if outcome.error else "It was stopped before it had a directory."
        self.text.set_text("Starting: settings are checked and data is read …" if outcome.alive else ended)
        self.stop.set_visibility(outcome.alive)
        self.error.set_text(escape_control(outcome.error))

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self.studio.processes.stop, self.studio.settings.outputs / self.name)
        except UserError as error:  # it has just ended
            ui.notify(str(error), type="negative")
            return
        self.stop.set_enabled(False)
