"""The page Runs: a live table of all runs, curves of those that are chosen, and one run in detail."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from nicegui import ui

from tinyllm.errors import UserError
from tinyllm.runs.query import CONDITION, parse_condition
from tinyllm.studio.catalogue import Catalogue, RunRow
from tinyllm.studio.curve_view import CurveView
from tinyllm.studio.page_style import STYLE, color_style, moment
from tinyllm.studio.run_view import show_run
from tinyllm.studio.studio import Studio
from tinyllm.studio.view import View, run_url
from tinyllm.utils.text import duration, short

REFRESH_S = 0.5
"""Seconds between two looks at the runs; with the catalogue's own rest, a record is shown within a second."""
MOST_NAMED = 12
"""Runs that the legend names; there are no more colors."""
AHEAD_S = 1.0
"""Seconds after which the metrics of the listed runs are parsed, in case their curves are wanted."""
NAMES = frozenset(field.name for field in fields(RunRow))
"""What the table itself shows can be filtered by these names."""
STATUSES = ("running", "waiting", "finished", "stopped", "lost", "failed", "damaged")
FILTER_HINT = "words, or conditions such as optimizer.lr<1e-3"
COLUMNS = (
    ("name", "Run", "left", ""),
    ("status", "Status", "left", ""),
    ("step", "Step", "right", ""),
    ("loss", "Loss", "right", ""),
    ("val_loss", "Val loss", "right", "wide"),
    ("bpb", "Bits/byte", "right", "wide"),
    ("tokens_per_s", "Tokens/s", "right", "wide"),
    ("eta_s", "ETA", "right", "wide"),
    ("parameters", "Parameters", "right", "wide"),
    ("updated", "Updated", "right", "wide"),
)
"""Key, heading, alignment, and "wide" where a narrow screen leaves it out."""


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    request = ui.context.client.request
    view = View.read(request.query_params)
    ui.add_css(STYLE)
    if view.run:
        show_run(studio, view, on_change=lambda: _remember(view))
    else:
        RunTable(studio, view)


def _remember(view: View) -> None:
    ui.navigate.history.replace(view.url())


class SortedTable(ui.table):
    """A table that is not sent again when a browser reports the order that it was sent in, as it does at its start."""

    @property
    def pagination(self) -> dict[str, Any]:
        """The order of the rows."""
        return dict(self._props["pagination"])

    @pagination.setter
    def pagination(self, value: dict[str, Any]) -> None:
        if any(value.get(name) != self._props["pagination"].get(name) for name in ("sortBy", "descending")):
            self._props["pagination"] = value


class RunTable:
    """The table with its filter, and the chart of the chosen runs."""

    def __init__(self, studio: Studio, view: View) -> None:
        self.studio, self.view = studio, view
        self._shown: tuple[Any, ...] = ()
        self._rows: Sequence[RunRow] = ()
        """All runs, as of the last look."""
        self._busy = asyncio.Lock()
        with ui.element("section").classes("card chosen") as self.section:
            with ui.element("div").classes("bar"):
                ui.html("<h2 class='title'>Curves</h2>", sanitize=False)
                ui.space()
                ui.button("Clear", on_click=self._clear).props("flat dense no-caps").mark("clear")
            self.legend = ui.element("ul").classes("legend").props('aria-label="Runs in the chart"')
            self.curves = CurveView(studio, view, self._changed)
        with ui.element("section").classes("card"):
            with ui.element("div").classes("bar"):
                ui.html("<h2 class='title'>Runs</h2>", sanitize=False)
                self.count = ui.label().classes("soft")
                ui.space()
                with ui.element("div").classes("filters") as self.filters:
                    self._build_filters()
            self.table = (
                SortedTable(
                    rows=[],
                    columns=[_column(*one) for one in COLUMNS],
                    row_key="id",
                    selection="multiple",
                    pagination={
                        "rowsPerPage": 0,
                        "sortBy": view.sort,
                        "descending": view.descending,
                    },
                    on_select=self._select,
                    on_pagination_change=self._sort,
                )
                .props("flat dense binary-state-sort hide-pagination hide-no-data")
                .props("virtual-scroll virtual-scroll-item-size=48")
                .classes("runs-table runs-list figures")
                .mark("runs")
            )
            self.table.add_slot("header-selection", SELECT_ALL)
            self.table.add_slot("body-selection", SELECT)
            self.table.add_slot("body-cell-name", NAME_CELL)
            self.table.add_slot("body-cell-status", STATUS_CELL)
            self.empty = ui.label("No run matches.").classes("soft").mark("empty")
            with ui.element("div").classes("soft none-yet") as self.none_yet:
                ui.label(f"No runs below {studio.settings.outputs} yet.")
                ui.link("Compose one", "/")
                ui.label("or start one in a terminal: it will appear here by itself.")
        self._show(studio.catalogue.rows())
        if view.chosen:
            self.curves.begin(view.chosen)
        ui.timer(0.05, self._follow, once=True)
        ui.timer(REFRESH_S, self.refresh)

    def _build_filters(self) -> None:
        view = self.view
        self.find = ui.input("Filter", value=view.find, on_change=self._filter)
        self.find.props("dense outlined clearable debounce=300").classes("find").mark("find")
        self.find.props["hint"] = FILTER_HINT
        status = ui.select(
            {"": "Any status", **{name: name.capitalize() for name in STATUSES}},
            value=view.status if view.status in STATUSES else "",
            label="Status",
            on_change=self._set_status,
        )
        status.props("dense outlined options-dense").classes("status-filter").mark("status")

    async def _follow(self) -> None:
        await self.curves.follow(self.view.chosen)
        await asyncio.sleep(AHEAD_S)
        await asyncio.to_thread(self.studio.catalogue.read_ahead, [row["id"] for row in self.table.rows])

    async def refresh(self) -> None:
        """Show what has changed."""
        if self._busy.locked():
            return
        async with self._busy:
            self._show(await asyncio.to_thread(self.studio.catalogue.rows))
            if self.view.chosen:
                await self.curves.refresh(self.view.chosen)

    def _show(self, rows: Sequence[RunRow]) -> None:
        self._rows, view, error = rows, self.view, ""
        try:
            matching = filtered(rows, view.find, view.status, self.studio.catalogue)
        except UserError as problem:
            matching, error = [], f"{problem.what}: {problem.hint}" if problem.hint else problem.what
        known = {row.id for row in rows}
        chosen = [name for name in view.chosen if name in known]
        signature = (tuple(matching), tuple(chosen), error, len(rows))
        if signature == self._shown:
            return
        self._shown = signature
        self.find.props["error"] = bool(error)
        self.find.props["error-message"] = error
        colors = {name: color_style(self.studio.catalogue.number(name)) for name in chosen}
        self.table.rows = [table_row(row, colors.get(row.id)) for row in matching]
        self.table.selected = [{"id": row.id} for row in matching if row.id in colors]
        self.count.text = f"{len(rows)}" if len(matching) == len(rows) else f"{len(matching)} of {len(rows)}"
        self.empty.set_visibility(bool(rows) and not matching)
        self.none_yet.set_visibility(not rows)
        for element in (self.filters, self.table):
            element.set_visibility(bool(rows))
        self.section.set_visibility(bool(chosen))
        self._show_legend(chosen)

    def _show_legend(self, chosen: Sequence[str]) -> None:
        self.legend.clear()
        with self.legend:
            for name in chosen[:MOST_NAMED]:
                with ui.element("li"):
                    ui.element("span").classes("swatch").style(color_style(self.studio.catalogue.number(name)))
                    ui.link(name, run_url(name))
            if len(chosen) > MOST_NAMED:
                with ui.element("li"):
                    ui.label(f"and {len(chosen) - MOST_NAMED} more, with their colors in the table").classes("soft")

    def _changed(self) -> None:
        _remember(self.view)
        ui.timer(0.01, self.refresh, once=True)

    def _select(self, event: Any) -> None:
        selected = [row["id"] for row in event.selection]
        hidden = [name for name in self.view.chosen if not any(row["id"] == name for row in self.table.rows)]
        kept = [name for name in self.view.chosen if name in selected or name in hidden]
        self.view.chosen = kept + [name for name in selected if name not in kept]
        self._show(self._rows)  # in the same message as the answer to the click: the browser builds the table once
        self._changed()

    def _clear(self) -> None:
        self.view.chosen = []
        self._changed()

    def _filter(self, event: Any) -> None:
        self.view.find = event.value or ""
        self._changed()

    def _set_status(self, event: Any) -> None:
        self.view.status = event.value
        self._changed()

    def _sort(self, event: Any) -> None:
        order = event.value.get("sortBy") or "updated", bool(event.value.get("descending"))
        if order != (self.view.sort, self.view.descending):  # a browser also reports the order of the start
            self.view.sort, self.view.descending = order
            _remember(self.view)


def filtered(rows: Sequence[RunRow], find: str, status: str, catalogue: Catalogue) -> list[RunRow]:
    """The runs with this status that every word of a filter fits.

    A word is a part of the name, data set, status or note, or a condition as those of ``python -m tinyllm.runs
    --where``, on any key of the settings, metrics or facts.

    Raises:
        UserError: a comparison with something that is no number.
    """
    tests = [_test(word, catalogue) for word in find.split()]
    return [row for row in rows if status in ("", row.status) and all(test(row) for test in tests)]


def _test(word: str, catalogue: Catalogue) -> Callable[[RunRow], bool]:
    condition = parse_condition(word) if CONDITION.fullmatch(word) else None

    def fits(row: RunRow) -> bool:
        if word.lower() in f"{row.id}\n{row.status}\n{row.dataset}\n{row.note}".lower():
            return True
        if condition is None:
            return False
        if condition.key in NAMES:
            return condition.holds_for(getattr(row, condition.key))
        listed = catalogue.listed(row.id)
        return listed is not None and condition.matches(listed)

    return fits


def table_row(row: RunRow, color: str | None) -> dict[str, Any]:
    """A run as a row of the table: values to sort by, and their texts."""
    texts = {
        "step": f"{row.step:,} / {row.max_steps:,}" if row.max_steps else f"{row.step:,}" if row.step else "",
        "loss": _decimals(row.loss),
        "val_loss": _decimals(row.val_loss),
        "bpb": _decimals(row.bpb),
        "tokens_per_s": "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
        "eta_s": "" if row.eta_s is None else duration(row.eta_s),
        "parameters": "" if row.parameters is None else short(row.parameters),
        "updated": moment(row.updated),
    }
    values = {name: getattr(row, name) for name, *_ in COLUMNS}
    return {
        **values,
        "id": row.id,
        "text": texts,
        "folder": row.folder,
        "note": row.note,
        "href": run_url(row.id) if row.status != "waiting" else "",
        "color": color or "",
    }


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _column(name: str, label: str, align: str, wide: str) -> dict[str, Any]:
    hidden = {"classes": "wide-only", "headerClasses": "wide-only"} if wide else {}
    # Not a template, which would be a component of its own in every cell. Rows are sorted by the value.
    text = {} if name in ("name", "status") else {":format": f"(value, row) => row.text.{name}"}
    return {"name": name, "label": label, "field": name, "align": align, "sortable": True, **hidden, **text}


SELECT_ALL = '<q-checkbox v-model="props.selected" dense aria-label="All runs in the chart" />'
SELECT = '<q-checkbox v-model="props.selected" dense :aria-label="`${props.row.name} in the chart`" />'
NAME_CELL = """
<q-td :props="props">
  <span v-if="props.row.color" class="swatch" :style="props.row.color"></span>
  <a v-if="props.row.href" class="run-link" :href="props.row.href">{{ props.row.name }}</a>
  <span v-else>{{ props.row.name }}</span>
  <div v-if="props.row.folder" class="soft small">{{ props.row.folder }}</div>
</q-td>
"""
STATUS_CELL = """
<q-td :props="props">
  <span :class="'status ' + props.row.status">{{ props.row.status }}</span>
  <div v-if="props.row.note" class="soft small note" :title="props.row.note">{{ props.row.note }}</div>
</q-td>
"""
"""The cells of the table. They are templates of ours; what a run holds is only ever a value in them."""
