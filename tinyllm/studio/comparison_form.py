"""The form of a comparison, its plan, and the button that starts it."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import background_tasks, ui

from tinyllm.errors import UserError
from tinyllm.studies.compare.plan import StudyPlan, cost_line
from tinyllm.studio.comparison import FRONT, Varied, comparison_rows, comparison_words, plan_of, quoted
from tinyllm.studio.fields import Field
from tinyllm.studio.report import Problem
from tinyllm.studio.speed import expected_seconds
from tinyllm.studio.studio import Studio
from tinyllm.utils.text import duration, escape_control, quantity, short

EXPLANATION = (
    "Each combination of these values is an arm, the first the reference: attn with mha and gqa gives two arms."
)
PAUSE_S = 1.0
"""Seconds without a further change after which the plan is worked out."""
PLAN_COLUMNS = (
    ("arm", "Arm", "left"),
    ("parameters", "Parameters", "right"),
    ("flops_per_token", "FLOPs/token", "right"),
    ("cache", "Cache/token", "right"),
    ("changed", "Matched by", "left"),
    ("steps", "Steps", "right"),
    ("tokens", "Tokens", "right"),
    ("flops", "FLOPs", "right"),
)


class ComparisonForm:
    """Arms, match, budget and seeds, with the plan and its cost before anything starts.

    Args:
        studio: holds what is filled in.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.comparison = studio, studio.comparison
        self.rows = comparison_rows(studio.settings.config_dir)
        self.words = comparison_words()
        self.fields: dict[str, Field] = {}
        self._planning: asyncio.Task[None] | None = None
        self._is_busy = False
        self._seen: list[str] = []
        """The settings that were planned last, or are about to be."""
        ui.context.client.on_delete(self._give_up)
        with ui.element("div").classes("compose"):
            with ui.element("div").classes("compose-form"):
                with ui.element("section").classes("card"):
                    _heading("Arms")
                    ui.label(EXPLANATION).classes("soft")
                    self.arms = ui.element("div").classes("arms")
                    add = ui.button("Add a key", icon="add", color=None, on_click=self._add).props("flat dense no-caps")
                    add.classes("add-key")
                    with ui.element("div").classes("bar"):
                        self.shared = ui.input("Settings of all arms", value=self.comparison.shared)
                        self.shared.props("outlined dense spellcheck=false input-class=mono").classes("shared")
                        self.shared.on_value_change(self._set_shared).mark("shared")
                        take = ui.button("Take those of Compose", color=None, on_click=self._take_draft)
                        take.props("flat dense no-caps").mark("take")
                with ui.element("section").classes("card"):
                    _heading("Comparison")
                    front = [row for row in self.rows if row.key in FRONT]
                    rest = [row for row in self.rows if row.key not in FRONT]
                    for row in front:
                        self.fields[row.key] = Field(row, self._set)
                    with ui.expansion(f"{len(rest)} more settings").classes("compose-more"):
                        for row in rest:
                            self.fields[row.key] = Field(row, self._set)
            with ui.element("aside").classes("compose-side"):
                self._build_side()
        with ui.element("section").classes("card") as self.table_card:
            _heading("Arms and their cost")
            heads = [{"name": key, "label": name, "field": key, "align": align} for key, name, align in PLAN_COLUMNS]
            self.table = ui.table(rows=[], columns=heads, row_key="arm", pagination={"rowsPerPage": 0})
            self.table.props("flat dense hide-bottom").classes("runs-table figures").mark("arms")
        self._show_arms()
        self._show()

    def _build_side(self) -> None:
        """The plan with its cost, and the command that carries it out."""
        with ui.element("section").classes("card plan").props('aria-label="Plan"'):
            _heading("Plan")
            self.hint = ui.label("Choose a key and its values: the plan and its cost come before anything starts.")
            self.hint.classes("soft").mark("plan-hint")
            self.show_plan = ui.button("Show the plan", icon="calculate", on_click=lambda: self._plan(fetch=True))
            self.show_plan.props("outline no-caps").classes("full").mark("plan")
            self.busy = ui.label("Composing the arms, preparing the data …").classes("soft").props("role=status")
            self.problem = ui.label().classes("bad").props("role=alert").mark("plan-problem")
            self.cost = ui.label().mark("cost")
            self.time = ui.label().classes("soft").mark("time")
        with ui.element("section").classes("card").props('aria-label="Command"') as self.command_card:
            with ui.element("div").classes("panel-head"):
                _heading("Command")
                copy = ui.button(icon="content_copy", color=None, on_click=self._copy)
                copy.props('flat dense round aria-label="Copy the command"').classes("soft")
            self.command = ui.label().classes("command mono").mark("command")
            self.start = ui.button("Start the comparison", icon="play_arrow", on_click=self._start)
            self.start.props("unelevated no-caps").classes("start").mark("start")

    def _show_arms(self) -> None:
        form = self.studio.form()
        names = [row.key for row in form.rows({})]
        self.arms.clear()
        with self.arms:
            for number, varied in enumerate(self.comparison.varied):
                with ui.element("div").classes("arm-row"):
                    options = names if not varied.key or varied.key in names else [*names, varied.key]
                    key = ui.select(
                        options,
                        value=varied.key or None,
                        label="Key or group",
                        with_input=True,
                        new_value_mode="add-unique",  # Enter takes what was typed
                    )
                    key.props("outlined dense options-dense").on_value_change(partial(self._set_key, varied))
                    key.classes("arm-key").mark(f"key {number}")
                    group = form.groups.get(varied.key)
                    if group is None:
                        values: Any = ui.input("Values, separated by commas", value=varied.values)
                        values.props("spellcheck=false input-class=mono")
                    else:
                        known = [option.name for option in group.options]
                        chosen = [name for name in varied.values.split(",") if name in known]
                        values = ui.select(known, value=chosen, multiple=True, label="Options").props("use-chips")
                    values.props("outlined dense").classes("arm-values").mark(f"values {number}")
                    values.on_value_change(partial(self._set_values, varied))
                    remove = ui.button(icon="close", color=None, on_click=partial(self._remove, varied))
                    remove.props('flat dense round aria-label="Remove this key"').classes("soft")

    def _set_key(self, varied: Varied, event: Any) -> None:
        if varied.key != (event.value or ""):
            varied.key, varied.values = event.value or "", ""
            self._show_arms()
            self._show()

    def _set_values(self, varied: Varied, event: Any) -> None:
        varied.values = ",".join(event.value) if isinstance(event.value, list) else event.value or ""
        self._show()

    def _add(self) -> None:
        self.comparison.varied.append(Varied())
        self._show_arms()

    def _remove(self, varied: Varied) -> None:
        self.comparison.varied = [each for each in self.comparison.varied if each is not varied] or [Varied()]
        self._show_arms()
        self._show()

    def _set_shared(self, event: Any) -> None:
        self.comparison.shared = event.value or ""
        self._show()

    def _take_draft(self) -> None:
        varied = {each.key for each in self.comparison.varied}
        taken = [one for one in self.studio.draft.arguments if one.partition("=")[0] not in varied]
        self.shared.set_value(quoted(taken))

    def _set(self, key: str, value: str | None) -> None:
        self.comparison.draft.set(key, value)
        self._show()

    def _show(self, problem: UserError | None = None) -> None:
        """Show what is filled in, the command, and the plan as long as it is the plan of that; else plan anew."""
        settings, text = self.comparison.draft.settings, "" if problem is None else str(problem)
        for key, field in self.fields.items():
            beside = Problem(text=text, key=(problem and problem.key) or "").beside(key, settings) if problem else ""
            field.show(settings.get(key), field.row.default, words=self.words.get(key), problem=beside)
        try:
            arguments = self.comparison.arguments()
        except UserError as error:
            arguments, text = [], text or str(error)
        if self.planned is not None and self.planned[0] != arguments:
            self.comparison.planned = None
        own = [] if self.planned is None else self._out(*self.planned)
        has_arms = self.comparison.has_arms
        self.command.set_text(self.comparison.command(self.studio.settings, *own) if arguments else "")
        self.command_card.set_visibility(has_arms)
        self.hint.set_visibility(not has_arms)
        self.problem.set_text(text if text and (problem is not None or self.comparison.varied[0].key) else "")
        self.problem.set_visibility(bool(self.problem.text))
        self.start.set_enabled(self.planned is not None)
        for element in (self.cost, self.table_card):
            element.set_visibility(self.planned is not None)
        if arguments != self._seen:
            self._seen = arguments
            self._give_up()
            if self.planned is None and self.comparison.has_arms:
                self._plan(pause=PAUSE_S)
        self.busy.set_visibility(self._is_busy)
        self.show_plan.set_visibility(has_arms)
        self.show_plan.set_enabled(not self._is_busy)
        self.time.set_visibility(False)
        if self.planned is not None:
            plan = self.planned[1]
            self.cost.set_text(f"{cost_line(plan)}.")
            self.time.set_text(self._seconds(plan))
            self.time.set_visibility(bool(self.time.text))
            self.table.rows = plan_rows(plan)

    @property
    def planned(self) -> tuple[list[str], StudyPlan] | None:
        """The plan, and the settings that it is the plan of; every browser sees it, and so does a reload."""
        return self.comparison.planned

    def _plan(self, *, pause: float = 0.0, fetch: bool = False) -> None:
        """Let the program work out the plan of what is filled in; what it was working out before is given up."""
        self._give_up()
        self._planning = background_tasks.create(self._plan_after(pause, fetch))

    def _give_up(self) -> None:
        if self._planning is not None:
            self._planning.cancel()
        self._planning, self._is_busy = None, False

    async def _plan_after(self, pause: float, fetch: bool) -> None:
        await asyncio.sleep(pause)
        problem, self._is_busy = None, True
        try:
            arguments = self.comparison.arguments()
            self._show()
            self.comparison.planned = arguments, await plan_of(arguments, self.studio.settings, fetch=fetch)
        except UserError as error:
            problem = error
        self._planning, self._is_busy = None, False
        if not self.table.is_deleted:
            self._show(problem)

    def _seconds(self, plan: StudyPlan) -> str:
        """How long it will take, in a sentence."""
        listed = [one for row in self.studio.catalogue.rows() if (one := self.studio.catalogue.listed(row.id))]
        each = [
            expected_seconds(objective=arm.objective, flops_per_token=arm.flops_per_token, flops=arm.flops, runs=listed)
            for arm in plan.arms
        ]
        if plan.minutes is not None or not plan.seeds or any(one is None for one in each):
            return ""
        total = sum(filter(None, each)) * len(plan.seeds) / plan.parallel
        return f"About {duration(total)} of training here, concluded from earlier runs of like size and objective."

    def _folder(self, plan: StudyPlan) -> Path:
        """Below this studio's outputs, under the name that the program chose: the same settings continue the study."""
        return self.studio.settings.outputs / "compare" / Path(plan.directory).name

    def _out(self, arguments: list[str], plan: StudyPlan) -> list[str]:
        return [] if any(one.startswith("out=") for one in arguments) else [f"out={self._folder(plan)}"]

    def _copy(self) -> None:
        ui.clipboard.write(self.command.text)
        ui.notify("Copied", position="bottom", timeout=1200)

    async def _start(self) -> None:
        if self.planned is None:
            return
        arguments, plan = self.planned
        out = self._folder(plan)
        settings = [*arguments, *self._out(arguments, plan)]
        try:
            await asyncio.to_thread(partial(self.studio.processes.start, "compare", settings, path=out))
        except UserError as error:
            self._show(error)
            return
        ui.navigate.to(f"/compare?{urlencode({'study': f'compare/{out.name}'})}")


def plan_rows(plan: StudyPlan) -> list[dict[str, str]]:
    """The arms of a plan as rows of a table."""
    return [
        {
            "arm": escape_control(arm.name) + (" (reference)" if arm.name == plan.reference else ""),
            "parameters": short(arm.parameters)
            + (f", {short(arm.active_parameters)} active" if arm.active_parameters != arm.parameters else ""),
            "flops_per_token": short(arm.flops_per_token),
            "cache": quantity(arm.kv_bytes_per_token, "B"),
            "changed": ", ".join(f"{key}={value}" for key, value in arm.solved.items())
            + (f" ({arm.mismatch:+.2%})" if arm.mismatch is not None and arm.name != plan.reference else ""),
            "steps": "measured first" if arm.max_steps is None else f"{arm.max_steps:,}",
            "tokens": "" if arm.tokens is None else short(arm.tokens),
            "flops": "" if arm.flops is None else short(arm.flops),
        }
        for arm in plan.arms
    ]


def _heading(text: str) -> None:
    ui.label(text).classes("title").props("role=heading aria-level=2")
