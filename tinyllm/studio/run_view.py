"""One run in detail: curves, samples, settings, machine, log and checkpoints, and what can be done with it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from tinyllm.studio import run_facts
from tinyllm.studio.catalogue import STOPPED, RunRow
from tinyllm.studio.curve_view import CurveView
from tinyllm.studio.run_actions import RunActions
from tinyllm.studio.run_facts import Row, Text
from tinyllm.studio.starting_run import StartingRun
from tinyllm.studio.studio import Studio
from tinyllm.studio.view import TABS, View
from tinyllm.utils.text import duration, escape_control, short

REFRESH_S = 0.5
SHORT = 200
"""Characters of a text in one line."""
COLUMNS = {
    "settings": (("key", "Setting"), ("value", "Value")),
    "differences": (("section", ""), ("key", "Key"), ("value", "This run"), ("other", "The other")),
    "machine": (("key", "Fact"), ("value", "Value")),
    "checkpoints": (("key", "Step"), ("value", "Size"), ("when", "Written"), ("mark", "")),
}


def show_run(studio: Studio, view: View, *, on_change: Callable[[], None]) -> None:
    """Build the page of the run that ``view`` names."""
    row = studio.catalogue.row(view.run)
    if row is None:
        StartingRun(studio, view.run)
        return
    RunPage(studio, view, row, on_change)


class RunPage:
    """The page of a run, kept up to date.

    Args:
        studio: whose run it is.
        view: names it.
        row: what the table says of it.
        on_change: called after a control changed the state.
    """

    def __init__(self, studio: Studio, view: View, row: RunRow, on_change: Callable[[], None]) -> None:
        self.studio, self.view, self._on_change = studio, view, on_change
        self._shown: dict[str, Any] = {}
        self._busy = asyncio.Lock()
        with ui.element("section").classes("card"):
            ui.link("All runs", "/runs").classes("back small")
            with ui.element("div").classes("bar"):
                ui.label(row.name).props("role=heading aria-level=1").classes("run-title").mark("title")
                self.status = ui.label().mark("run-status")
                ui.space()
                self.actions = RunActions(studio, view.run)
            self.note = ui.label().classes("bad").mark("note")
            self.figures = ui.element("dl").classes("run-figures figures")
        with ui.element("section").classes("card"):
            self.curves = CurveView(studio, view, self._changed)
        with ui.element("section").classes("card"):
            with ui.tabs(on_change=self._tab).props("dense no-caps align=left") as tabs:
                for name in TABS:
                    ui.tab(name, label=name.capitalize())
            with ui.tab_panels(tabs, value=view.tab, animated=False).classes("run-panels"):
                self.panels = {}
                for name in TABS:
                    with ui.tab_panel(name):
                        if name == "settings":
                            self._other = self._choice(row)
                        self.panels[name] = ui.element("div")
        self._show_row(row)
        self._show_tab(self._read_tab(row))
        self.curves.begin([view.run])
        ui.timer(0.05, self._follow, once=True)
        ui.timer(REFRESH_S, self.refresh)

    def _choice(self, row: RunRow) -> ui.select:
        """The run to compare the settings with."""
        others = {"": "No other run: show all settings"}
        others |= {other.id: other.id for other in self.studio.catalogue.rows() if other.id != row.id}
        select = ui.select(
            others,
            value=self.view.other if self.view.other in others else "",
            label="Compare with",
            with_input=True,
            on_change=self._compare,
        )
        return select.props("dense outlined options-dense").classes("other-run").mark("other")

    async def _follow(self) -> None:
        await self.curves.follow([self.view.run])

    async def refresh(self) -> None:
        """Show what has changed."""
        if self._busy.locked():
            return
        async with self._busy:
            row = await asyncio.to_thread(self.studio.catalogue.row, self.view.run)
            if row is None:
                self.status.text = "removed"
                return
            self._show_row(row)
            self._show_tab(await asyncio.to_thread(self._read_tab, row))
            await self.curves.refresh([self.view.run])

    def _changed(self) -> None:
        self._on_change()
        ui.timer(0.01, self.refresh, once=True)

    def _tab(self, event: Any) -> None:
        self.view.tab = event.value if event.value in TABS else TABS[0]
        self._changed()

    def _compare(self, event: Any) -> None:
        self.view.other = event.value or ""
        self._changed()

    def _show_row(self, row: RunRow) -> None:
        start = self.studio.processes.start_of(row.path)
        error = "" if start is None else self.studio.processes.outcome(start).error
        self.actions.show(row)
        if self._shown.get("row") == (row, error):
            return
        self._shown["row"] = (row, error)
        self.status.text = row.status
        self.status.classes(replace=f"status {row.status}")
        self.note.text = escape_control(error) or row.note
        self.note.set_visibility(bool(self.note.text))
        self.note.classes(replace="soft" if row.status == STOPPED and not error else "bad")
        figures = {
            "Step": f"{row.step:,} of {row.max_steps:,}" if row.max_steps else f"{row.step:,}",
            "Loss": _decimals(row.loss),
            "Validation loss": _decimals(row.val_loss),
            "Bits per byte": _decimals(row.bpb),
            "Best": _decimals(row.best),
            "Tokens/s": "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            "ETA": "" if row.eta_s is None else duration(row.eta_s),
            "Parameters": "" if row.parameters is None else short(row.parameters),
            "Data": row.dataset,
            "Directory": escape_control(str(row.path)),
        }
        self.figures.clear()
        with self.figures:
            for name, text in figures.items():
                if text:
                    with ui.element("div"):
                        with ui.element("dt").classes("soft small"):
                            ui.label(name)
                        with ui.element("dd"):
                            ui.label(text).classes("mono" if name == "Directory" else "")

    def _read_tab(self, row: RunRow) -> tuple[str, Sequence[Text] | Sequence[Row]]:
        """The kind of the open tab's content, and the content."""
        tab, catalogue = self.view.tab, self.studio.catalogue
        listed = catalogue.listed(row.id)
        if tab == "samples":
            return tab, run_facts.samples(row.path)
        if tab == "log":
            return tab, run_facts.log(row.path)
        if tab == "checkpoints":
            return tab, run_facts.checkpoints(row.path)
        if listed is None:
            return tab, []
        if tab == "machine":
            return tab, run_facts.machine(listed)
        other = catalogue.listed(self.view.other) if self.view.other else None
        return "settings" if other is None else "differences", run_facts.settings(listed, other)

    def _show_tab(self, content: tuple[str, Sequence[Text] | Sequence[Row]]) -> None:
        kind, items = content
        panel = self.panels["settings" if kind == "differences" else kind]
        if self._shown.get("tab") == content:
            return
        self._shown["tab"] = content
        panel.clear()
        with panel:
            if not items:
                ui.label(EMPTY[kind]).classes("soft")
            elif kind in ("samples", "log"):
                _show_texts(items)  # type: ignore[arg-type]
            else:
                _show_rows(items, COLUMNS[kind], find=kind == "settings")  # type: ignore[arg-type]


EMPTY = {
    "samples": "No samples yet: trainer.sample_every says how often there is one.",
    "log": "Nothing reported yet.",
    "checkpoints": "No checkpoint yet.",
    "settings": "The settings cannot be read.",
    "differences": "The two runs do not differ.",
    "machine": "The facts cannot be read.",
}


def _show_texts(texts: Sequence[Text]) -> None:
    for each in texts:
        with ui.element("div").classes("log-line" if is_line(each) else ""):
            ui.label(each.heading).classes("soft small figures")
            ui.label(each.text).classes("mono" if is_line(each) else "run-text mono")


def is_line(text: Text) -> bool:
    """Whether a text stands beside its heading."""
    return "\n" not in text.text and len(text.text) <= SHORT and not text.heading.startswith("Step")


def _show_rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]], *, find: bool) -> None:
    named = [{**row, "id": number} for number, row in enumerate(rows)]
    heads = [{"name": key, "label": label, "field": key, "align": "left", "sortable": True} for key, label in columns]
    table = ui.table(rows=named, columns=heads, row_key="id", pagination={"rowsPerPage": 0})
    table.props("flat dense hide-bottom wrap-cells").classes("fact-table")
    if find:
        field = ui.input("Find").props("dense outlined clearable").classes("find")
        field.bind_value_to(table, "filter")
        field.move(target_index=0)


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
