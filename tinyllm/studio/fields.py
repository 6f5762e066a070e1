"""A row of a form: a key or a group with its description, an input, and what is wrong beside it."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from tinyllm.studio.form import NONE, Row

Change = Callable[[str, str | None], None]
"""Called with a key and its new value as typed; None: back to the default."""


class Field:
    """The widgets of a row.

    Args:
        row: what is shown.
        change: called when a person changes the value.
        browse: lets a person choose a path, called with the path so far; None: there is no such button.
    """

    def __init__(
        self, row: Row, change: Change, *, browse: Callable[[str], Awaitable[str | None]] | None = None
    ) -> None:
        self.row, self.change = row, change
        self._showing = False
        self._words: list[str] = []
        with ui.element("div").classes("form-row") as self.box:
            with ui.element("div").classes("form-text"):
                ui.label(row.key).classes("form-key").classes("form-group" if row.is_group else "mono")
                self.meaning = ui.label(row.meaning).classes("soft form-meaning")
                # In the place of the description, so that the rows below do not move while a person types.
                self.error = ui.label().classes("bad form-meaning").props("role=alert").mark(f"problem:{row.key}")
            with ui.element("div").classes("form-line") as self.line:
                self.input = self._make_input()
                if row.is_path and browse is not None:
                    button = ui.button(icon="folder_open", color=None, on_click=lambda: self._browse(browse))
                    button.props("flat dense round").classes("soft").mark(f"browse:{row.key}")
                    button.props["aria-label"] = f"Browse for {row.key}"
                self.undo = ui.button(icon="undo", color=None, on_click=lambda: self.change(row.key, None))
                self.undo.props("flat dense round").classes("soft form-undo")
                self.undo.props["aria-label"] = f"Back to the default of {row.key}"
        self.error.set_visibility(False)

    def _make_input(self) -> Any:
        row = self.row
        if row.is_group:
            options = {name: f"{name} · {what}" if what else name for name, what in row.options}
            select = ui.select(
                options, label=row.key, multiple=row.several, on_change=lambda event: self._picked(event.value)
            )
            made: Any = select.props("outlined dense options-dense popup-content-class=form-menu")
        else:
            made = ui.input(on_change=lambda event: self._typed(event.value)).props("outlined dense")
            made.props("autocomplete=off spellcheck=false input-class=mono")
        made.props["aria-label"] = row.key
        return made.classes("form-value").mark(f"key:{row.key}")

    def _offer(self, words: list[str], default: str) -> None:
        """Turn the text input into a choice: the key allows these words only."""
        self._words = words
        with self.line:
            self.input.delete()
            options = {"": f"{default} (default)"} | {word: word for word in words}
            self.input = ui.select(
                options, label=self.row.key, value="", on_change=lambda event: self._typed(event.value)
            )
        self.input.props("outlined dense options-dense popup-content-class=form-menu").classes("form-value").mark(
            f"key:{self.row.key}"
        )
        self.input.props["aria-label"] = self.row.key
        self.input.move(self.line, 0)

    def _typed(self, value: str | None) -> None:
        if not self._showing:
            self.change(self.row.key, value or None)

    def _picked(self, value: Any) -> None:
        if not self._showing:
            text = f"[{','.join(value)}]" if self.row.several else value
            self.change(self.row.key, text)

    async def _browse(self, browse: Callable[[str], Awaitable[str | None]]) -> None:
        chosen = await browse(self.input.value or "")
        if chosen is not None:
            self.change(self.row.key, chosen)

    def show(self, setting: str | None, effective: str, *, words: list[str] | None = None, problem: str = "") -> None:
        """Show the state of the key.

        Args:
            setting: its value in the draft; None: it has none.
            effective: the value that the run would have.
            words: the values it allows; None: any.
            problem: what is wrong with it; "" if nothing is.
        """
        self._showing = True  # what the program shows is no change by a person
        try:
            if words and not self.row.is_group and words != self._words:
                self._offer(words, effective)
            if self.row.is_group:
                self._show_choice(effective if setting is None else setting)
            elif self._words:
                extra = [setting] if setting and setting not in self._words else []  # mistyped in an address
                default = effective if setting is None else self.row.default
                options = {"": f"{default} (default)"} | {word: word for word in [*self._words, *extra]}
                self.input.set_options(options, value=setting or "")
            else:
                if (self.input.value or "") != (setting or ""):
                    self.input.set_value(setting or "")
                placeholder = "required" if effective == "???" else effective
                if setting is None and self.input.props.get("placeholder") != placeholder:
                    self.input.props["placeholder"] = placeholder
                    self.input.update()
        finally:
            self._showing = False
        if setting is None:
            self.box.classes(remove="form-changed")
        else:
            self.box.classes(add="form-changed")
        self.undo.set_enabled(setting is not None)
        self.error.set_text(problem)
        self.error.set_visibility(bool(problem))
        self.meaning.set_visibility(not problem)

    def _show_choice(self, value: str) -> None:
        if self.row.several:
            names = [name for name in value.strip("[]").split(",") if name and name != NONE]
            known = [name for name in names if name in dict(self.row.options)]
            self.input.set_value(known)
            shown = ", ".join(names) or NONE
        else:
            self.input.set_value(value if value in dict(self.row.options) else None)
            shown = value
            self.meaning.set_text(dict(self.row.options).get(value, ""))
        if self.input.props.get("display-value") != shown:
            self.input.props["display-value"] = shown
            self.input.update()
