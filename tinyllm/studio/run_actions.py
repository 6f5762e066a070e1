"""What can be done with a run: stop, resume, extend, export, open its report."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.studies.compare.runner import STUDY
from tinyllm.studio.catalogue import LOST, STOPPED, RunRow
from tinyllm.studio.processes import Start
from tinyllm.studio.studio import Studio
from tinyllm.utils.text import escape_control

REPORT = "report.html"


class RunActions:
    """The buttons of a run's page.

    Args:
        studio: starts and stops the programs.
        name: the run's id.
    """

    def __init__(self, studio: Studio, name: str) -> None:
        self.studio, self.name = studio, name
        self._row: RunRow | None = None
        with ui.element("div").classes("run-actions"):
            self.stop = _button("Stop", "stop", self._stop, "Ends after the current step, with a checkpoint")
            self.resume = _button("Resume", "play_arrow", self._resume, "Continues from the last checkpoint")
            self.extend = _button("Extend", "more_time", self._ask_steps, "Trains further than was planned")
            self.export = _button("Export", "ios_share", self._export, "Writes the model for Hugging Face transformers")
            _button("New run like this", "content_copy", self._compose, "Compose with the settings of this run")
            self.report = ui.link("Report", "/compare").classes("run-report")
            self.report.set_visibility(False)
        self.exported = ui.label().props("role=status").mark("exported")
        self.exported.set_visibility(False)

    def show(self, row: RunRow) -> None:
        """Offer what can be done now."""
        self._row = row
        is_alive, has_checkpoint = row.status == "running", (row.path / "checkpoints" / "last").is_file()
        stopping = is_alive and self.studio.processes.is_stopping(row.path)
        self.stop.set_visibility(is_alive)
        self.stop.set_enabled(not stopping)
        self.stop.text = "Stopping …" if stopping else "Stop"
        self.resume.set_visibility(row.status in (STOPPED, LOST, "failed") and has_checkpoint)
        self.extend.set_visibility(row.status == "finished" and has_checkpoint)
        self.export.set_visibility(has_checkpoint)
        study = study_of(row.path, self.studio.settings.outputs)
        self.report.set_visibility(study is not None)
        if study is not None:
            self.report.props["href"] = f"/compare?study={study}"
        self._show_export(row)

    def _show_export(self, row: RunRow) -> None:
        """Show how the newest export of the run stands, whichever studio started it."""
        export = self.studio.processes.newest("export", f"run={row.path}")
        text, kind = "", "soft"
        if export is not None:
            outcome, out = self.studio.processes.outcome(export), escape_control(export.path)
            if outcome.alive:
                text = f"Exporting to {out} …"
            elif outcome.error:
                text, kind = f"The export failed: {escape_control(outcome.error)}", "bad"
            elif Path(export.path).is_dir():  # it may have been removed since
                text, kind = f"Exported for Hugging Face transformers: {out}", "good"
        if text != self.exported.text:
            self.exported.set_text(text)
            self.exported.classes(replace=kind)
            self.exported.set_visibility(bool(text))

    async def _do(self, act: Callable[[Path], Any], done: str) -> None:
        assert self._row is not None
        try:
            await asyncio.to_thread(act, self._row.path)
        except UserError as error:
            text = f"{error.what}: {error.hint}" if error.hint else error.what
            ui.notify(escape_control(text), type="negative", timeout=8000)
            return
        ui.notify(done, type="info")

    async def _stop(self) -> None:
        await self._do(self.studio.processes.stop, "It will stop after its current step and save a checkpoint.")

    async def _resume(self) -> None:
        await self._do(self.studio.processes.resume, "Resuming from the last checkpoint.")

    def _compose(self) -> None:
        assert self._row is not None
        ui.navigate.to(f"/?{urlencode({'from': self._row.path})}")

    def _ask_steps(self) -> None:
        planned = (self._row.max_steps if self._row else None) or 1
        with ui.dialog() as dialog, ui.card().classes("extend"):
            ui.html("<h2 class='title'>Train further</h2>", sanitize=False)
            number = ui.number("Steps in all", value=2 * planned, min=planned + 1, precision=0).mark("steps")

            async def go() -> None:
                steps = int(number.value or 0)
                if steps <= planned:
                    number.props["error"], number.props["error-message"] = True, f"more than {planned:,}"
                    return
                dialog.close()
                settings = [f"trainer.max_steps={steps}"]
                await self._do(
                    lambda path: self.studio.processes.resume(path, settings), f"Training to step {steps:,}."
                )

            with ui.element("div").classes("bar"):
                ui.button("Train", on_click=go).props("no-caps unelevated").mark("train-further")
                ui.button("Cancel", on_click=dialog.close).props("no-caps flat")
        dialog.open()

    async def _export(self) -> None:
        assert self._row is not None
        out = free_name(self._row.path)

        def export(path: Path) -> Start:
            return self.studio.processes.start("export", [f"run={path}", f"out={out}"], path=out)

        await self._do(export, f"Exporting to {escape_control(str(out))}.")


def _button(text: str, icon: str, act: Callable[[], Any], hint: str) -> ui.button:
    button = ui.button(text, icon=icon, on_click=act, color=None).props(f'outline dense no-caps title="{hint}"')
    return button.classes("run-action").mark(text.lower())


def free_name(run_dir: Path) -> Path:
    """A folder beside the run for its export that does not exist yet."""
    number, out = 1, run_dir.with_name(f"{run_dir.name}-hf")
    while out.exists():
        number += 1
        out = run_dir.with_name(f"{run_dir.name}-hf-{number}")
    return out


def study_of(run_dir: Path, outputs: Path) -> str | None:
    """The study that a run belongs to and whose report is written, by its path below the outputs."""
    for folder in run_dir.parents:
        if folder == outputs or not folder.is_relative_to(outputs):
            return None
        if (folder / STUDY).is_file() and (folder / REPORT).is_file():
            return folder.relative_to(outputs).as_posix()
    return None
