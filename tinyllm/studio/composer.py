"""The page Compose at work: changes go into the draft, checks of it come back to the fields and the cost."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from nicegui import background_tasks, ui

from tinyllm.errors import UserError
from tinyllm.runs.listing import find_runs
from tinyllm.studio.catalogue import identifier
from tinyllm.studio.cost_panel import CostPanel
from tinyllm.studio.fields import Field
from tinyllm.studio.file_dialog import choose_path
from tinyllm.studio.form import SECTIONS, START, Row
from tinyllm.studio.report import Report
from tinyllm.studio.speed import PastRun, expected, past_runs
from tinyllm.studio.starting_points import run_settings, starting_points
from tinyllm.studio.studio import Studio
from tinyllm.studio.view import run_url

PAUSE_S = 0.25
"""Seconds without a further change after which the draft is checked."""
OPENING_S = 0.4
"""Seconds in which a group of settings opens."""
MOST_FOUND = 40
"""Rows that a search shows."""


class Composer:
    """The form, the panel beside it, and the draft between them.

    Args:
        studio: whose draft is edited.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.form, self.draft = studio, studio.form(), studio.draft
        self.report = studio.report
        self.past: list[PastRun] = []
        self.rows: list[Row] = []
        """Those of the chosen options."""
        self.fields: dict[str, list[Field]] = {}
        self.more: dict[str, ui.expansion] = {}
        """Of each section the part that is opened first."""
        self._built: dict[str, list[Row]] = {}
        """The rows of each section as they were built."""
        self._checked = -1
        """The version of the draft that was checked last."""
        self._checking: asyncio.Task[None] | None = None
        self._browse = partial(choose_path, studio.settings)
        self._build()
        self._show_draft()
        self._check()

    def _build(self) -> None:
        with ui.element("div").classes("compose"):
            with ui.element("div").classes("compose-form"):
                with ui.element("div").classes("compose-top"):
                    self.search = ui.input(placeholder="Search all settings", on_change=self._show_found)
                    self.search.props('outlined dense clearable debounce=150 aria-label="Search all settings"')
                    self.search.classes("compose-search").mark("search")
                    with self.search.add_slot("prepend"):
                        ui.icon("search")
                    self.origin = ui.select({}, with_input=True, on_change=lambda event: self._start_from(event.value))
                    self.origin.props("outlined dense options-dense popup-content-class=form-menu")
                    self.origin.props["label"] = "Start from a recipe or a run"
                    self.origin.classes("compose-origin").mark("origin")
                    reset = ui.button("Reset", icon="restart_alt", color=None, on_click=lambda: self.begin([]))
                    reset.props("flat no-caps").classes("soft").mark("reset")
                self.found = ui.element("section").classes("card").props('aria-label="Found settings"')
                self.found.set_visibility(False)
                self.strays = ui.element("section").classes("card").props('aria-label="Settings without effect"')
                self.sections = ui.element("div").classes("compose-sections")
                with self.sections:
                    self.cards = {
                        name: ui.element("section").classes("card").props(f'aria-label="{name}"') for name in SECTIONS
                    }
                self._update_sections()
            with ui.element("aside").classes("compose-side"):
                self.panel = CostPanel(self.start, self.reveal)

    def _update_sections(self) -> set[str]:
        """Build the sections to which the chosen options bring other rows; their names.

        The others stay as they are, with what is open in them and what a person is about to choose.
        """
        self.rows = self.form.rows(self._choices())
        rows = {name: [row for row in self.rows if row.section == name] for name in SECTIONS}
        changed = {name for name in SECTIONS if rows[name] != self._built.get(name)}
        for name in sorted(changed, key=list(SECTIONS).index):
            self._build_section(name, rows[name])
        if changed:
            self._build_strays()
            self._show_found()
        return changed

    def _build_section(self, name: str, rows: list[Row]) -> None:
        """Build a section. Rows behind "More" are built when that is opened."""
        is_open = name in self.more and bool(self.more[name].value)
        self._built[name] = rows
        card = self.cards[name]
        card.clear()
        self._forget_removed()
        with card:
            ui.label(name).classes("title").props("role=heading aria-level=2")
            self._build_rows(row for row in rows if row.is_front)
            rest = [row for row in rows if not row.is_front]
            with ui.expansion(f"{len(rest)} more settings").classes("compose-more") as more:
                more.mark(f"more:{name.partition(' ')[0]}")
                inside = ui.element("div")
            more.on_value_change(partial(self._open, inside, rest))
            self.more[name] = more
            more.set_value(is_open)

    def _forget_removed(self) -> None:
        """Drop the fields whose rows were removed from the page."""
        for fields in self.fields.values():
            fields[:] = [field for field in fields if not field.box.is_deleted]

    def _open(self, inside: ui.element, rows: list[Row]) -> None:
        if not inside.default_slot.children:
            with inside:
                self._build_rows(rows)
            self._show_draft()

    def _build_rows(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.fields.setdefault(row.key, []).append(Field(row, self.set, browse=self._browse))

    def _build_strays(self) -> None:
        """Settings of the draft that the chosen options do not have, so that they can be taken back."""
        known = {row.key for row in self.rows} | {START}
        strays = [key for key in self.draft.settings if key not in known]
        self.strays.clear()
        self.strays.set_visibility(bool(strays))
        with self.strays:
            ui.label("Other settings").classes("title").props("role=heading aria-level=2")
            meaning = "of the starting point; the chosen options have no field for it"
            rows = [Row(key=key, section="", meaning=meaning, default="") for key in strays]
            self._build_rows(rows)

    def _choices(self) -> dict[str, str]:
        """The chosen options: those of the last check, under the newer ones of the draft."""
        return self.report.choices | {
            key: value for key, value in self.draft.settings.items() if key in self.form.groups
        }

    def _show_found(self) -> None:
        words = (self.search.value or "").lower().split()
        self.found.clear()
        self.found.set_visibility(bool(words))
        self.sections.set_visibility(not words)
        self._forget_removed()
        if words:
            rows = [row for row in self.rows if row.matches(words)]
            with self.found:
                ui.label(count_text(len(rows))).classes("soft")
                self._build_rows(rows[:MOST_FOUND])
            self._show_draft()

    def set(self, key: str, value: str | None) -> None:
        """Take a change into the draft; keys that a newly chosen option lacks go with the old one."""
        before = self.draft.settings.copy()
        if not self.draft.set(key, value):
            return
        problem = self.report.problem
        if problem is not None and problem.beside(key, before):  # it was of the value that is replaced
            self.report = self.studio.report = replace(self.report, problem=None)
            self.panel.forget_problem()
        if key in self.form.groups:
            old = {row.key for row in self.rows}
            new = {row.key for row in self.form.rows(self._choices())}
            for gone in (old - new) & self.draft.settings.keys():
                self.draft.set(gone, None)
            used = self.fields[key][-1]
            self._update_sections()
            if used.box.is_deleted:
                self.fields[key][-1].input.run_method("focus")  # the field that was used has a successor
        self._show_draft()
        self._check()

    def begin(self, arguments: Iterable[str]) -> None:
        """Start again from settings given as typed."""
        self.draft.replace(arguments)
        self._build_strays()
        self._show_draft()
        self._check()

    async def _start_from(self, point: str | None) -> None:
        if not point:
            return
        kind, _, name = point.partition(":")
        if kind == "recipe" and self.draft.settings.get(START) == name:
            return  # shown, not chosen
        try:
            settings = (
                [f"{START}={name}"]
                if kind == "recipe"
                else await asyncio.to_thread(run_settings, Path(name), self.studio.settings)
            )
        except UserError as error:
            ui.notify(str(error), type="negative")
            return
        self.begin(settings)

    async def load(self) -> None:
        """Read the earlier runs: starting points, and speeds on this machine."""
        outputs = self.studio.settings.outputs
        runs = await asyncio.to_thread(find_runs, [outputs] if outputs.is_dir() else [])
        self.past = past_runs(runs)
        self.origin.set_options(starting_points(self.form.recipes, runs))
        self._show_recipe()
        self._show_report()

    def _check(self) -> None:
        if self._checking is None or self._checking.done():
            self.panel.show_busy(True)
            self._checking = background_tasks.create(self._check_until_settled())

    async def _check_until_settled(self) -> None:
        """Check the draft until no change has come in the meantime; only the newest draft is checked."""
        while self._checked != self.draft.version:
            version = self.draft.version
            await asyncio.sleep(PAUSE_S)
            if version != self.draft.version:
                continue
            report = await self.studio.checker.examine(self.draft.arguments)
            self._checked = version
            if version == self.draft.version:
                self._take(report)
        self.panel.show_busy(False)

    def _take(self, report: Report) -> None:
        if not report.values:  # it does not even compose: what else is known stays
            report = Report(
                problem=report.problem, values=self.report.values, choices=self.report.choices, words=self.report.words
            )
        self.report = self.studio.report = report
        self._update_sections()
        self._show_draft()
        self._show_report()
        self._open_group(report.problem.key if report.problem else "")

    def _open_group(self, key: str) -> None:
        """Open the group that hides a key, so that what is wrong with it is seen beside it."""
        row = next((row for row in self.rows if row.key == key and not row.is_front), None)
        if row is not None:
            self.more[row.section].set_value(True)

    def reveal(self, key: str) -> None:
        """Go to the field of a key, wherever it is hidden."""
        self.search.set_value("")
        self._open_group(key)
        if fields := self.fields.get(key):
            # once what was just opened is there
            ui.timer(OPENING_S, partial(fields[0].input.run_method, "focus"), once=True)

    def follow(self) -> None:
        """Show what another browser has changed."""
        if self._shown != self.draft.version:
            self._show_draft()
        idle = self._checking is None or self._checking.done()
        if idle and self.studio.report is not self.report:
            self._checked = self.draft.version
            self._take(self.studio.report)

    def _show_report(self) -> None:
        figures = self.report.figures
        self.panel.show(self.report, None if figures is None else expected(figures, self.past))

    def _show_draft(self) -> None:
        """Show the draft and what the last check said of it in every field."""
        report, settings = self.report, self.draft.settings
        self._shown = self.draft.version
        self.panel.show_command(self.draft.command(self.studio.settings.config_dir))
        self._show_recipe()
        choices = self._choices()
        for key, fields in self.fields.items():
            for field in fields:
                effective = choices.get(key) if field.row.is_group else report.values.get(key)
                field.show(
                    settings.get(key),
                    field.row.default if effective is None else effective,
                    words=report.words.get(key),
                    problem="" if report.problem is None else report.problem.beside(key, settings),
                )

    def _show_recipe(self) -> None:
        """Show the recipe that the draft starts from; the settings of a run are all in the draft itself."""
        recipe = f"recipe:{self.draft.settings.get(START)}"
        self.origin.set_value(recipe if recipe in self.origin.options else None)

    async def start(self) -> None:
        """Start the run, once the newest draft has passed its check, and go to it."""
        self.panel.start.set_enabled(False)
        while self._checking is not None and not self._checking.done():
            await asyncio.wait([self._checking])
        if self.report.problem is not None:
            return
        try:
            started = self.studio.processes.train(self.draft.arguments, name=self.draft.name(self.report))
        except UserError as error:
            ui.notify(str(error), type="negative")
            self.panel.start.set_enabled(True)
            return
        ui.navigate.to(run_url(identifier(Path(started.path), self.studio.settings.outputs)))


def count_text(found: int) -> str:
    """How many settings a search found."""
    if not found:
        return "No setting has these words in its name, its description or its options."
    if found > MOST_FOUND:
        return f"{found} settings found, the first {MOST_FOUND}"
    return f"{found} settings found" if found > 1 else "1 setting found"
