"""A comparison while it runs and afterwards: progress arm by arm, curves, and the report inside."""

import asyncio
from typing import Any
from urllib.parse import quote

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.studio.catalogue import RunRow
from tinyllm.studio.curve_view import CurveView
from tinyllm.studio.page_style import color_style
from tinyllm.studio.studies import Progress, StudyRow, find_study, progress
from tinyllm.studio.studio import Studio
from tinyllm.studio.view import View, run_url
from tinyllm.utils.text import duration, escape_control

REFRESH_S = 0.5
REPORTS = "/reports"
MOST_CURVES = 24
"""Runs in the chart; those of the first seeds."""


def show_study(studio: Studio, name: str) -> None:
    """Build the page of a comparison."""
    study = find_study(studio.settings.outputs, name)
    start = studio.processes.start_of(studio.settings.outputs / name)
    if study is None and start is None:
        with ui.element("section").classes("card"):
            ui.label("No such comparison").classes("title").props("role=heading aria-level=1")
            ui.label(f"There is no comparison {name} below {studio.settings.outputs}.")
            ui.link("All comparisons", "/compare")
        return
    StudyPage(studio, name)


class StudyPage:
    """The page of a comparison, kept up to date; it may not have written its plan yet.

    Args:
        studio: whose comparison it is.
        name: its id.
    """

    def __init__(self, studio: Studio, name: str) -> None:
        self.studio, self.name = studio, name
        self._shown: tuple[Any, ...] = ()
        self._reported = 0.0
        self._busy = asyncio.Lock()
        self._runs: list[str] = []
        self._arms: dict[str, int] = {}
        """The number of each run's arm, for its color, which is that of the report."""
        with ui.element("section").classes("card"):
            ui.link("All comparisons", "/compare").classes("back small")
            with ui.element("div").classes("bar"):
                self.title = ui.label(name).props("role=heading aria-level=1").classes("run-title").mark("title")
                self.status = ui.label("starting").classes("status").mark("study-status")
                ui.space()
                self.stop = ui.button("Stop", icon="stop", color=None, on_click=self._stop)
                self.stop.props('outline dense no-caps title="The same command continues it"').classes("run-action")
            self.problem = ui.label().classes("bad").mark("problem")
            self.arms = ui.element("div").classes("progress-arms")
        with ui.element("section").classes("card") as self.curves_card:
            self.view = View(metrics=["val/loss"], axis="tokens")
            self.curves = CurveView(studio, self.view, self._soon, number=lambda run: self._arms.get(run, 0))
        with ui.element("section").classes("card") as self.report_card:
            with ui.element("div").classes("bar"):
                ui.label("Report").classes("title").props("role=heading aria-level=2")
                ui.space()
                ui.link("Open by itself", self._report_url(), new_tab=True).classes("run-report")
            self.report = ui.element("iframe").classes("report")
            # Scripts of the report may run, cut off from the studio: in an origin of their own.
            self.report.props('title="Report of the comparison" sandbox="allow-scripts" loading=lazy').mark("report")
        self._show(*self._read())
        ui.timer(0.05, self._begin, once=True)
        ui.timer(REFRESH_S, self.refresh)

    def _report_url(self) -> str:
        return f"{REPORTS}/{quote(self.name)}"

    async def _begin(self) -> None:
        await self.curves.follow(self._runs)

    def _soon(self) -> None:
        ui.timer(0.01, self.refresh, once=True)

    async def refresh(self) -> None:
        """Show what has changed."""
        if self._busy.locked():
            return
        async with self._busy:
            self._show(*await asyncio.to_thread(self._read))
            await self.curves.refresh(self._runs)

    def _read(self) -> tuple[StudyRow | None, list[Progress], str]:
        """The comparison, its progress, and why its program failed."""
        folder = self.studio.settings.outputs
        study = find_study(folder, self.name)
        start = self.studio.processes.start_of(folder / self.name)
        error = "" if start is None else escape_control(self.studio.processes.outcome(start).error)
        arms = [] if study is None else progress(study, {row.id: row for row in self.studio.catalogue.rows()})
        return study, arms, error

    def _show(self, study: StudyRow | None, arms: list[Progress], error: str) -> None:
        if (study, arms, error) == self._shown:
            return
        self._shown = study, arms, error
        status = "starting" if study is None else study.status
        self.title.text = self.name if study is None else study.question
        self.status.text = status
        self.status.classes(replace=f"status {status}")
        self.stop.set_visibility(status == "running")
        self.problem.text = error
        self.problem.set_visibility(bool(error))
        runs = [
            row.id for seeds in zip(*(arm.runs for arm in arms), strict=False) for _, row in seeds if row is not None
        ]
        self._runs = runs[:MOST_CURVES]
        self._arms = {row.id: number for number, arm in enumerate(arms) for _, row in arm.runs if row is not None}
        self.curves_card.set_visibility(bool(runs))
        self.arms.clear()
        with self.arms:
            for number, arm in enumerate(arms):
                _show_arm(arm, color_style(number))
        has_report = study is not None and study.has_report
        self.report_card.set_visibility(has_report)
        if study is not None and has_report and study.updated != self._reported:
            self._reported = study.updated
            self.report.props["src"] = f"{self._report_url()}?written={study.updated:.3f}"

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self.studio.processes.stop, self.studio.settings.outputs / self.name)
        except UserError as error:
            ui.notify(str(error), type="negative", timeout=8000)
            return
        ui.notify("It will stop once its runs have saved; the same command continues it.", type="info")


def _show_arm(arm: Progress, color: str) -> None:
    with ui.element("div").classes("progress-arm"):
        with ui.element("div").classes("arm-name"):
            ui.element("span").classes("swatch").style(color)
            ui.label(arm.arm)
        bar = ui.linear_progress(arm.share, show_value=False, size="6px").classes("arm-bar")
        bar.props["aria-label"] = f"Progress of {arm.arm}"
        ui.label(f"{arm.finished} of {len(arm.runs)} runs").classes("soft small figures")
        with ui.element("ul").classes("arm-runs figures"):
            for seed, row in arm.runs:
                with ui.element("li"):
                    _show_run(seed, row)


def _show_run(seed: int, row: RunRow | None) -> None:
    if row is None:
        ui.label(f"seed {seed}: waiting").classes("status waiting small")
        return
    parts = [row.status]
    if row.status == "running" and row.max_steps:
        parts.append(f"step {row.step:,} of {row.max_steps:,}")
        parts += [f"ETA {duration(row.eta_s)}"] if row.eta_s is not None else []
    if row.val_loss is not None:
        parts.append(f"val loss {row.val_loss:.4f}")
    ui.link(f"seed {seed}: {', '.join(parts)}", run_url(row.id)).classes(f"status {row.status} small arm-run")
