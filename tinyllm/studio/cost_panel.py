"""Beside the form of Compose: what the run costs, what is wrong, and the command that starts it."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from tinyllm.studio.cost_text import ROWS, UNKNOWN, source_of, texts_of
from tinyllm.studio.report import Problem, Report
from tinyllm.studio.speed import Expectation


class CostPanel:
    """The column beside the form.

    Args:
        start: called when a person starts the run.
        reveal: called with a key when a person wants to see its field.
    """

    def __init__(self, start: Callable[[], Awaitable[None]], reveal: Callable[[str], None]) -> None:
        self._values: dict[str, ui.label] = {}
        with ui.element("section").classes("card").props('aria-label="Cost"'):
            with ui.element("div").classes("panel-head"):
                ui.label("Cost").classes("title").props("role=heading aria-level=2")
                self.busy = ui.label("checking …").classes("soft").props("aria-live=off")
            with ui.element("dl").classes("figures cost") as self.figures:
                for name, meaning in ROWS:
                    with ui.element("div").classes("cost-row").props(f'title="{meaning}"'):
                        with ui.element("dt"):
                            ui.label(name)
                        with ui.element("dd"):
                            self._values[name] = ui.label(UNKNOWN)
        with ui.element("section").classes("card").props('aria-label="Command"'):
            with ui.element("div").classes("panel-head"):
                ui.label("Command").classes("title").props("role=heading aria-level=2")
                copy = ui.button(icon="content_copy", color=None, on_click=self._copy)
                copy.props('flat dense round aria-label="Copy the command"').classes("soft")
            self.command = ui.label().classes("mono command").mark("command")
            self.start = ui.button("Start training", icon="play_arrow", on_click=start)
            self.start.props("unelevated no-caps color=primary").classes("start").mark("start")
            self.problem = ui.label().classes("bad problem").props("role=alert").mark("problem")
            self._key = ""
            self.reveal = ui.button(icon="arrow_forward", color=None, on_click=lambda: reveal(self._key))
            self.reveal.props("flat dense no-caps").classes("soft").mark("reveal")
            self.reveal.set_visibility(False)
        # Below everything else, so that nothing moves when they come and go.
        self.notes = ui.element("div").classes("soft form-meaning panel-notes")

    def _copy(self) -> None:
        ui.clipboard.write(self.command.text)
        ui.notify("Copied", position="bottom", timeout=1200)

    def show_command(self, command: str) -> None:
        """Show the command that starts this run from a shell."""
        self.command.set_text(command)

    def show_busy(self, busy: bool) -> None:
        """Show whether a check is under way."""
        self.busy.style("visibility: visible" if busy else "visibility: hidden")  # it keeps its place

    def show(self, report: Report, expectation: Expectation | None) -> None:
        """Show what a check found."""
        figures, problem = report.figures, report.problem
        if problem is None or figures is not None:
            for name, text in texts_of(figures, expectation).items():
                self._values[name].set_text(text)
            notes = [*report.notes, *([] if expectation is None else [source_of(expectation)])]
            self.notes.clear()
            with self.notes:
                for note in dict.fromkeys(notes):
                    ui.label(note)
        self.figures.classes(**{"add" if figures is None else "remove": "stale"})
        self._show_problem(problem)
        self.start.set_enabled(problem is None)

    def forget_problem(self) -> None:
        """Show no problem any more; the next check says whether the run can start."""
        self._show_problem(None)

    def _show_problem(self, problem: Problem | None) -> None:
        self.problem.set_text("" if problem is None else problem.text)
        self.problem.set_visibility(problem is not None)
        self._key = "" if problem is None else problem.key
        self.reveal.set_text(f"Go to {self._key}")
        self.reveal.set_visibility(bool(self._key))
