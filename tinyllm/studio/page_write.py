"""The page Write: texts of one or two models, side by side, token by token."""

import asyncio
from pathlib import Path
from typing import Any, TypeVar

from nicegui import ui
from nicegui.elements.mixins.value_element import ValueElement
from nicegui.events import ValueChangeEventArguments

from tinyllm.studio import token_text
from tinyllm.studio.studio import Studio
from tinyllm.studio.token_text import Inspector, TokenText
from tinyllm.studio.writing import form
from tinyllm.studio.writing.desk import MESSAGE, Desk, Side
from tinyllm.studio.writing.models import checkpoints

LABELS = {
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "repetition_penalty": "Repetition penalty",
    "max_new_tokens": "Tokens at most",
    "seed": "Seed",
    "stop": "Stop string",
}
Shared = TypeVar("Shared", bound=ValueElement)
TEXT, CHAT = "Continue a text", "Chat"
TOKENS_S, RUNS_S = 0.1, 2.0
"""Seconds between two looks at what was written, and at what runs there are."""


def show(studio: Studio) -> None:
    """Build the page inside the common frame."""
    ui.add_css(STYLE + token_text.STYLE)
    page = WritePage(studio.desk)
    ui.timer(TOKENS_S, page.update)
    ui.timer(RUNS_S, page.look)


class WritePage:
    """The page in one browser; its state is the desk's."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.runs: dict[str, Path] = {}
        """Those that can be chosen; :meth:`look` finds them."""
        self.shared: list[tuple[ValueElement, dict[str, Any], str]] = []
        """Elements that show and set a value of the desk."""
        with ui.element("div").classes("write-form card"):
            self._build_form()
        self.none_yet = ui.element("div").classes("card soft")
        with self.none_yet:
            ui.label(f"No run below {desk.outputs} has a checkpoint yet; the first one will be offered here by itself.")
            ui.link("Compose a run", "/")
        self.none_yet.set_visibility(False)
        self.columns = ui.element("div").classes("write-sides")
        with self.columns:
            self.sides = [SideColumn(self, side, number) for number, side in enumerate(desk.sides, start=1)]
        self.update()

    def _build_form(self) -> None:
        desk = self.desk
        modes = ui.toggle([TEXT, CHAT], value=CHAT if desk.chat else TEXT, on_change=self._change_mode)
        modes.props('no-caps unelevated aria-label="What to write"').classes("write-modes")
        self.modes = modes
        prompt = self._share(ui.textarea("Prompt"), vars(desk), "prompt").props("outlined autogrow")
        prompt.props["hint"] = "The text to continue; empty: the beginning of a document"
        message = self._share(ui.textarea("Message"), vars(desk), "message").props("outlined autogrow")
        for area in (prompt, message):
            area.classes("write-prompt").on("keydown.ctrl.enter.prevent", self._write, args=[])
        with ui.element("div").classes("write-fields") as chat_fields:
            system = self._share(ui.input("System message"), vars(desk), "system")
            system.props("outlined dense").classes("wide")
            tool = self._share(
                ui.select(form.tools(desk.config_dir), label="Tool", value=desk.tool), vars(desk), "tool"
            )
            tool.props("outlined dense")
        self.of_chat: list[ui.element] = [message, chat_fields]
        self.message = message.without_auto_validation()
        self.fields: dict[str, ui.input] = {}
        with ui.element("div").classes("write-fields"):
            for key, (default, meaning) in form.help_texts().items():
                field = self._share(ui.input(LABELS[key]), desk.fields, key)
                field.props("outlined dense stack-label debounce=300").tooltip(meaning)
                field.props["placeholder"] = default.replace("null", "off" if key != form.STOP else "none")
                self.fields[key] = field.without_auto_validation()  # it would take our errors away
        self.of_text: list[ui.element] = [prompt, self.fields[form.STOP]]
        with ui.row(align_items="center"):
            ui.button("Write", on_click=self._write).props("no-caps unelevated").mark("write")
            self.stop_button = ui.button("Stop", on_click=lambda: desk.stop()).props("no-caps outline").mark("stop")
            self.clear_button = ui.button("New conversation", on_click=self._clear).props("no-caps flat").mark("new")
            self.colours = ui.switch("Color by probability", value=True, on_change=self.update)
            self.error = ui.label().classes("bad").props("role=alert")

    def _change_mode(self) -> None:
        self.desk.set_chat(self.modes.value == CHAT)
        self._check()
        self.update()

    def _share(self, element: Shared, values: dict[str, Any], key: str) -> Shared:
        """Let an element set a value of the desk, and show it whichever browser set it."""

        def take(event: ValueChangeEventArguments) -> None:
            if event.value != values[key]:
                values[key] = event.value
                if key in self.desk.fields:
                    self._check()

        element.on_value_change(take)
        self.shared.append((element, values, key))
        return element

    def _check(self) -> None:
        self.desk.check()
        self._show_errors()

    def _show_errors(self) -> None:
        errors = self.desk.errors
        for key, field in self.fields.items():
            field.error = errors.get(key)
        self.message.error = errors.get(MESSAGE)
        elsewhere = [error for key, error in errors.items() if key not in (*self.fields, MESSAGE)]
        self.error.set_text("; ".join(elsewhere))

    async def _write(self) -> None:
        self.runs = await asyncio.to_thread(self.desk.runs)
        self.desk.write(self.runs)
        self.update()

    def _clear(self) -> None:
        for side in self.desk.sides:
            self.desk.clear(side)
        self.update()

    def update(self) -> None:
        """Show what changed on the desk."""
        desk = self.desk
        for shared, values, key in self.shared:
            shared.set_value(values[key])
        self.modes.set_value(CHAT if desk.chat else TEXT)
        self._show_errors()
        for elements, visible in ((self.of_text, not desk.chat), (self.of_chat, desk.chat)):
            for element in elements:
                element.set_visibility(visible)
        self.clear_button.set_visibility(desk.chat and any(side.turns for side in desk.sides))
        self.stop_button.set_visibility(desk.is_writing)
        self.columns.classes(
            add="coloured" if self.colours.value else "", remove="" if self.colours.value else "coloured"
        )
        for column in self.sides:
            column.update()

    async def look(self) -> None:
        """Look for new runs and newer checkpoints."""
        desk = self.desk
        self.runs = await asyncio.to_thread(desk.runs)
        self.none_yet.set_visibility(not self.runs)
        self.columns.set_visibility(bool(self.runs) or any(side.run for side in desk.sides))
        if self.runs and not any(side.run or side.turns for side in desk.sides):
            desk.choose(desk.sides[0], next(iter(self.runs)), self.runs)
        for column in self.sides:
            await column.look()
        self.update()


class SideColumn:
    """One of the two models: the choice of its run and checkpoint, its texts, and the alternatives to a token."""

    def __init__(self, page: WritePage, side: Side, number: int) -> None:
        self.page, self.side, self.number = page, side, number
        self._known: dict[str, str] = {}
        """Checkpoints of the run, the newest first."""
        with ui.element("section").classes("card write-side").props(f'aria-label="Model {number}"'):
            with ui.element("div").classes("write-fields"):
                name = "Run" if number == 1 else "Second run"
                self.choice = ui.select(self._names(), label=name, on_change=self._choose, with_input=True)
                self.choice.props("outlined dense options-dense").props("clearable" if number > 1 else "")
                self.choice.classes("wide")
                self.saved = ui.select({}, label="Checkpoint", on_change=self._use)
                self.saved.props("outlined dense options-dense")
            self.newer = ui.button(on_click=self._use_newest).mark(f"newer-{number}")
            self.newer.props("no-caps flat dense icon=update")
            self.error = ui.label().classes("bad").props("role=alert")
            inspector: list[Inspector] = []
            self.text = TokenText(side, name=f"Text of model {number}", inspect=lambda piece: inspector[0].show(piece))
            inspector.append(Inspector(f"Alternatives of model {number}"))
            with ui.row(align_items="center", wrap=False).classes("write-command"):
                self.command = ui.label().classes("mono soft")
                self.copy = ui.button(on_click=lambda: ui.clipboard.write(self.command.text))
                self.copy.props('flat round dense icon=content_copy aria-label="Copy the command"')

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self.page.runs, *([self.side.run] if self.side.run else [])]))

    def _choose(self) -> None:
        name = self.choice.value or ""
        if name != self.side.run:
            self.page.desk.choose(self.side, name, self.page.runs)
            self._known = checkpoints(self.page.runs[name]) if name in self.page.runs else {}
            self.update()

    def _use(self) -> None:
        name = self.saved.value or ""
        if name != self.side.checkpoint and name in self._known:
            self.page.desk.use_checkpoint(self.side, name)
            self.update()

    def _use_newest(self) -> None:
        self.page.desk.use_checkpoint(self.side, next(iter(self._known), ""))
        self.update()

    async def look(self) -> None:
        """Look for newer checkpoints."""
        path = self.page.runs.get(self.side.run)
        self._known = await asyncio.to_thread(checkpoints, path) if path else {}

    def update(self) -> None:
        """Show what changed on the desk."""
        side, desk = self.side, self.page.desk
        names = self._names()
        if self.choice.options != names or self.choice.value != (side.run or None):
            self.choice.set_options(names, value=side.run or None)
        known = self._known | ({side.checkpoint: side.checkpoint} if side.checkpoint not in {"", *self._known} else {})
        if self.saved.options != known or self.saved.value != (side.checkpoint or None):
            self.saved.set_options(known, value=side.checkpoint or None)
        self.saved.set_visibility(bool(side.run))
        newest = next(iter(self._known), "")
        self.newer.set_visibility(
            bool(side.checkpoint) and newest not in ("", side.checkpoint) and newest > side.checkpoint
        )
        self.newer.set_text(f"Use the newer checkpoint, {self._known.get(newest, '')}")
        self.error.set_text(side.error)
        self.text.box.classes(replace=f"tokens {'talk' if desk.chat else 'continued'}")
        self.text.update()
        command = desk.command(side, self.page.runs)
        self.command.set_text(command)
        self.copy.set_visibility(bool(command))


STYLE = """
.write-form { display: grid; gap: 0.75rem; margin-bottom: 1rem; }
.write-form + .card a { color: var(--accent); }
.write-modes { width: fit-content; border: 1px solid var(--line); }
.write-fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 0.5rem 0.75rem; }
.write-fields .wide { grid-column: span 2; }
.write-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.write-fields .q-field--with-bottom { padding-bottom: 0; }
.write-fields .q-field__bottom { position: static; transform: none; padding: 4px 4px 0; line-height: 1.3;
  min-height: 0; }
.write-side { min-width: 0; }
.write-command { margin-top: 0.5rem; }
.write-command .mono { overflow-wrap: anywhere; flex: 1; }
@media (max-width: 600px) { .write-fields { grid-template-columns: 1fr 1fr; } }
"""
