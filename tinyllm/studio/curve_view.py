"""Curves of one or several runs with their controls, kept up to date."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import background_tasks, ui

from tinyllm.studies.report.theme import style
from tinyllm.studio.chart import Curve, Window, chart_options
from tinyllm.studio.studio import Studio
from tinyllm.studio.view import SMOOTHEST, View
from tinyllm.utils.text import escape_control

USUAL = ("train/loss", "val/loss")
"""The metrics shown first."""
FEW_RUNS = 12
"""More runs show one metric at first: two lines of each would hide each other."""
AXIS_NAMES = {"step": "Steps", "tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds"}
ALL: Window = (0.0, 100.0)


class CurveView:
    """A chart and its controls.

    Args:
        studio: whose runs are shown.
        view: the state; the controls change its metrics, axis, smoothing and scale.
        changed: called after a control changed the state.
        number: the number of a run's style; default: one that it keeps wherever it is shown.
    """

    def __init__(
        self,
        studio: Studio,
        view: View,
        changed: Callable[[], None],
        *,
        number: Callable[[str], int] | None = None,
    ) -> None:
        self.studio, self.view, self._changed = studio, view, changed
        self._number = number or studio.catalogue.number
        self.dark = studio.system_dark
        """Whether this page is dark, where that is the system's choice."""
        self.window = ALL
        self._few = True
        self.names: list[str] = []
        self._signature: tuple[Any, ...] = ()
        self._busy = asyncio.Lock()
        with ui.element("div").classes("curve-controls"):
            self._metrics = (
                ui.select([], multiple=True, label="Metrics", on_change=self._choose)
                .props("dense outlined options-dense use-chips hide-dropdown-icon=false")
                .classes("curve-metrics")
                .mark("metrics")
            )
            ui.select(AXIS_NAMES, label="Over", value=view.axis, on_change=self._set_axis).props(
                "dense outlined options-dense"
            ).classes("curve-axis").mark("axis")
            with ui.element("label").classes("curve-smooth"):
                ui.label("Smoothing").classes("soft")
                ui.slider(min=0, max=SMOOTHEST, step=0.01, value=view.smooth).props(
                    'dense aria-label="Smoothing"'
                ).on_value_change(self._set_smooth).mark("smooth")
            ui.checkbox("Log scale", value=view.log, on_change=self._set_log).props("dense").mark("log")
        self.chart = ui.echart({"series": []}).classes("curve-chart").props('role="img"').mark("chart")
        self.chart.on("chart:datazoom", self._zoom, ["start", "end", "batch"], throttle=0.3)
        self.empty = ui.label("Nothing recorded yet.").classes("soft")

    def _choose(self, event: Any) -> None:
        chosen = list(event.value or [])
        if chosen != self._shown_metrics(self.names):
            self.view.metrics = chosen
            self._changed()

    def _set_axis(self, event: Any) -> None:
        self.view.axis, self.window = event.value, ALL
        self._changed()

    def _set_smooth(self, event: Any) -> None:
        self.view.smooth = float(event.value)
        self._changed()

    def _set_log(self, event: Any) -> None:
        self.view.log = bool(event.value)
        self._changed()

    def _zoom(self, event: Any) -> None:
        zoom = (event.args.get("batch") or [event.args])[0]
        start, end = zoom.get("start"), zoom.get("end")
        if isinstance(start, int | float) and isinstance(end, int | float) and 0 <= start < end <= 100:
            self.window = (float(start), float(end))

    def begin(self, runs: Sequence[str]) -> None:
        """Draw these runs while the browser loads the page."""
        background_tasks.create(self.refresh(runs))

    async def follow(self, runs: Sequence[str]) -> None:
        """Draw these runs in the page that has just arrived, in its theme where that is the system's choice."""
        await self.refresh(runs)
        if self.studio.dark is None:
            try:
                is_dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
            except TimeoutError:
                return
            self.dark = self.studio.system_dark = bool(is_dark)
            await self.refresh(runs)

    async def refresh(self, runs: Sequence[str]) -> None:
        """Draw what is new of these runs."""
        if self._busy.locked():
            return
        async with self._busy:
            dark = self.dark if self.studio.dark is None else self.studio.dark
            view = self.view
            wanted = (tuple(runs), tuple(view.metrics), view.axis, view.smooth, view.log, dark, self.window)
            made = await asyncio.to_thread(self._make, list(runs), wanted, dark)
            if made is None or self.chart.is_deleted:
                return
            names, signature, options = made
            self._show_names(names)
            self._signature = signature
            has_points = bool(options["series"])
            self.chart.set_visibility(has_points)
            self.empty.set_visibility(not has_points)
            shown = ", ".join(map(escape_control, self._shown_metrics(names)))
            label = f"{shown} over {AXIS_NAMES[view.axis].lower()}, {len(runs)} run{'s' * (len(runs) != 1)}"
            self.chart.props["aria-label"] = label
            self.chart.options.clear()
            self.chart.options.update(options)
            self.chart.update()

    def _make(
        self, runs: list[str], wanted: tuple[Any, ...], dark: bool
    ) -> tuple[list[str], tuple[Any, ...], dict[str, Any]] | None:
        """The names of all metrics, a signature of what is shown, and the chart; None if nothing changed."""
        catalogue = self.studio.catalogue
        tails = {name: tail for name in runs if (tail := catalogue.metrics(name)) is not None}
        signature = (*wanted, *((name, tail.version) for name, tail in tails.items()))
        if signature == self._signature:
            return None
        names = sorted({name for tail in tails.values() for name in tail.names if name.isprintable()}, key=_order)
        self._few = len(tails) <= FEW_RUNS
        metrics = self._shown_metrics(names)
        curves = []
        for name, tail in tails.items():
            for number, metric in enumerate(metrics):
                parts = [escape_control(metric)] * (len(metrics) > 1 or len(tails) == 1)
                parts += [name] * (len(tails) > 1)
                kind = style(number + 1 if len(tails) == 1 else self._number(name))
                x, y = tail.series(metric, self.view.axis)
                curves.append(Curve(name=" · ".join(parts), style=kind, x=x, y=y, dashed=len(tails) > 1 and number > 0))
        title = escape_control(metrics[0]) if len(metrics) == 1 else ""
        options = chart_options(
            curves,
            axis=self.view.axis,
            title=title,
            dark=dark,
            smooth=self.view.smooth,
            log=self.view.log,
            window=self.window,
        )
        return names, signature, options

    def _shown_metrics(self, names: Sequence[str]) -> list[str]:
        known = [name for name in self.view.metrics if name in names]
        usual = [name for name in USUAL if name in names][: 2 if self._few else 1]
        return known or usual or list(names[:1])

    def _show_names(self, names: list[str]) -> None:
        shown = self._shown_metrics(names)
        if names != self.names or self._metrics.value != shown:
            self.names = names
            self._metrics.set_options({name: escape_control(name) for name in names}, value=shown)


def _order(name: str) -> tuple[int, str]:
    """Losses first, then the rest by name."""
    return (USUAL.index(name) if name in USUAL else len(USUAL) + (not name.startswith("val/")), name)
