"""The page Compare: arms, match, budget and seeds as a form, progress and report."""

import asyncio
from urllib.parse import urlencode

from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from nicegui import app, ui

from tinyllm.studio.comparison_form import ComparisonForm
from tinyllm.studio.page_style import STYLE as COMMON
from tinyllm.studio.page_style import moment
from tinyllm.studio.studies import report_of, studies
from tinyllm.studio.studio import Studio
from tinyllm.studio.study_view import REPORTS, show_study

ROUTE = REPORTS + "/{name:path}"
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts"
)
"""A report is a file that anybody may have put there: its scripts reach neither the studio nor the network."""


def show(studio: Studio) -> None:
    """Build the page inside the common frame. ``/compare?study=<id>`` shows a comparison."""
    ui.add_css(COMMON + STYLE)
    request = ui.context.client.request
    name = request.query_params.get("study") if request is not None else None
    if name:
        show_study(studio, name)
        return
    ComparisonForm(studio)
    rows = studies(studio.settings.outputs)
    with ui.element("section").classes("card"):
        ui.label("Comparisons").classes("title").props("role=heading aria-level=2")
        if not rows:
            ui.label(f"No comparisons below {studio.settings.outputs} yet.").classes("soft")
        with ui.element("ul").classes("studies").props('aria-label="Comparisons"'):
            for row in rows:
                with ui.element("li"):
                    ui.link(row.question, f"/compare?{urlencode({'study': row.id})}").classes("run-link")
                    ui.label(row.status).classes(f"status {row.status} small")
                    ui.label(f"{row.id} · {moment(row.updated)}").classes("soft small")


def serve_reports(studio: Studio) -> None:
    """Serve the reports of comparisons, each by the id of its comparison."""
    app.remove_route(ROUTE)  # that of a studio before this one in this process

    @app.get(ROUTE)
    async def report(name: str) -> Response:
        text = await asyncio.to_thread(report_of, studio.settings.outputs, name)
        if text is None:
            return PlainTextResponse("no such report", 404)
        return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"})


STYLE = """
.compose .card + .card { margin-top: 0; }
.compose + .card, .compose + .card + .card { margin-top: 1.25rem; }
.plan { display: grid; gap: 0.75rem; }
.arms { display: grid; gap: 0.5rem; margin: 0.75rem 0 0.5rem; }
.add-key { margin: 0 0 0.75rem -0.25rem; padding: 0.25rem 0.5rem; }
.arm-row { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr) auto; gap: 0.5rem; align-items: start; }
.shared { flex: 1 1 20rem; }
.studies { list-style: none; padding: 0; margin: 0.25rem 0 0; }
.studies li { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; align-items: baseline; padding: 0.4rem 0;
  border-top: 1px solid var(--line); }
.studies li:first-child { border-top: none; }
.progress-arms { display: grid; gap: 0.75rem; margin-top: 0.5rem; }
.progress-arm { display: grid; grid-template-columns: minmax(0, 14rem) minmax(0, 1fr) 7rem; gap: 0.15rem 1rem;
  align-items: center; }
.arm-name { display: flex; align-items: baseline; font-weight: 550; overflow-wrap: anywhere; }
.arm-runs { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 0.1rem 1.25rem; list-style: none; padding: 0;
  margin: 0; }
.arm-run { text-decoration: none; }
.arm-run:hover { text-decoration: underline; }
.report { width: 100%; height: 80vh; border: 1px solid var(--line); border-radius: 6px; background: white; }
@media (max-width: 600px) {
  .arm-row { grid-template-columns: minmax(0, 1fr) auto; }
  .arm-values { grid-column: 1; }
  .progress-arm { grid-template-columns: minmax(0, 1fr) 7rem; }
  .arm-bar { grid-column: 1 / -1; grid-row: 2; }
}
"""
