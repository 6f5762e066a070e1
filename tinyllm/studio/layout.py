"""The frame of every page: header, navigation, theme, and the style that all pages share."""

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from tinyllm.studio.studio import Studio

NAMES = ("Compose", "Runs", "Compare", "Write")
THEMES: tuple[tuple[bool | None, str, str], ...] = (
    (None, "brightness_auto", "Theme: that of the system"),
    (False, "light_mode", "Theme: light"),
    (True, "dark_mode", "Theme: dark"),
)
ACCENT = "#2b5f84"


def share_style() -> None:
    """Add the style to all pages."""
    ui.add_css(STYLE, shared=True)


@contextmanager
def frame(studio: Studio, name: str) -> Iterator[None]:
    """The page ``name`` around what is built inside the block."""
    ui.context.client.page.dark = studio.dark  # in the page as it is sent: it does not flash
    ui.colors(primary=ACCENT, dark="#1b1f24", dark_page="#14171a", positive="#2e7d4f", negative="#b3372f", info=ACCENT)
    dark = ui.dark_mode(studio.dark)
    with ui.header(elevated=False).classes("studio-header"):
        ui.link("Skip to content", "#content").classes("skip")
        ui.label("tinyllm").classes("studio-brand")
        with ui.element("nav").props('aria-label="Pages"').classes("studio-nav"):
            for other in NAMES:
                link = ui.link(other, "/" if other == "Compose" else f"/{other.lower()}").classes("studio-link")
                if other == name:
                    link.props('aria-current="page"')
        ui.space()
        button = ui.button(color=None).props("flat round dense").classes("studio-theme").mark("theme")

        def show_theme() -> None:
            _, icon, text = next(theme for theme in THEMES if theme[0] == studio.dark)
            button.props(f'icon={icon} aria-label="{text}" title="{text}"')

        def next_theme() -> None:
            values = [value for value, *_ in THEMES]
            studio.dark = values[(values.index(studio.dark) + 1) % len(values)]
            dark.set_value(studio.dark)
            show_theme()

        show_theme()
        button.on_click(next_theme)
    with ui.element("div").props("id=content tabindex=-1").classes("studio-main"):  # in the <main> of the framework
        ui.label(name).props("role=heading aria-level=1").classes("for-screen-readers")
        yield


STYLE = """
:root { --line: #d9dee3; --soft: #5a6672; --ground: #ffffff; --raised: #f6f8fa; --accent: #2b5f84; --ink: #1c2126;
  --bad: #a8322a; --good: #2e7d4f; --warn: #8a5a00; }
.body--dark { --line: #343b43; --soft: #a3adb8; --ground: #14171a; --raised: #1b1f24; --accent: #8ec1e6; --ink: #e6e9ec;
  --bad: #ff9a92; --good: #7fd6a3; --warn: #f0c674; }
.body--dark { --q-primary: #8ec1e6 !important; }
.body--dark .q-btn.bg-primary { --q-primary: #2b5f84; }
body { background: var(--ground); color: var(--ink); font-size: 15px; }
.nicegui-content { padding: 0; display: block; }
.studio-header { background: var(--raised); color: var(--ink); border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: nowrap; align-items: center; gap: 1.25rem; padding: 0 1.25rem; min-height: 3rem; }
.studio-brand { font-weight: 650; letter-spacing: -0.01em; }
.studio-nav { display: flex; gap: 0.25rem; align-self: stretch; }
.studio-link { display: flex; align-items: center; padding: 0 0.75rem; color: var(--soft) !important;
  text-decoration: none !important; border-bottom: 2px solid transparent; border-top: 2px solid transparent; }
.studio-link:hover { color: var(--ink) !important; }
.studio-link[aria-current] { color: var(--ink) !important; border-bottom-color: var(--accent); font-weight: 550; }
.studio-theme { color: var(--soft) !important; }
.studio-main { padding: 1.25rem; max-width: 100rem; margin: 0 auto; outline: none; }
.skip { position: absolute; left: -100rem; top: 0; z-index: 9999; padding: 0.5rem 1rem; background: var(--ground);
  color: var(--accent); }
.skip:focus { left: 0; }
.for-screen-readers { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.card { background: var(--ground); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.soft { color: var(--soft); }
.bad { color: var(--bad); }
.good { color: var(--good); }
.warn { color: var(--warn); }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
.figures { font-variant-numeric: tabular-nums; }
h2.title { font-size: 1.05rem; line-height: 1.4; font-weight: 600; margin: 0; }
.title { font-size: 1.05rem; line-height: 1.4; font-weight: 600; }
.full { width: 100%; }
.compose { display: grid; grid-template-columns: minmax(0, 1fr) 23rem; gap: 1.25rem; align-items: start; }
.compose-side { position: sticky; top: 4.25rem; display: grid; gap: 1rem; max-height: calc(100vh - 5.5rem);
  overflow-y: auto; }
.compose-form, .compose-sections { display: grid; gap: 1rem; min-width: 0; }
.compose-top { display: flex; gap: 0.75rem; flex-wrap: wrap; align-items: center; }
.compose-search { flex: 1 1 14rem; }
.compose-origin { flex: 1 1 16rem; min-width: 0; }
.form-row { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 19rem); gap: 0.25rem 1.25rem;
  padding: 0.6rem 0 0.6rem 0.75rem; border-left: 2px solid transparent; border-top: 1px solid var(--line); }
.title + .form-row { border-top: none; }
.form-changed { border-left-color: var(--accent); }
.form-key { font-size: 13.5px; overflow-wrap: anywhere; }
.form-group { font-weight: 600; font-size: 14.5px; }
.form-meaning { font-size: 13px; line-height: 1.45; overflow-wrap: anywhere; }
.form-line { display: flex; align-items: center; align-self: start; gap: 0.15rem; }
.form-value { flex: 1; min-width: 0; }
/* Screen readers read this label of a choice; the eye sees the key beside it. */
.form-value .q-field__label { display: none; }
.form-value.q-field--labeled :is(.q-field__native, .q-field__control-container) { padding-top: 0 !important;
  padding-bottom: 0 !important; }
.form-undo[disabled] { visibility: hidden; }
.problem { font-size: 13px; line-height: 1.45; overflow-wrap: anywhere; }
.compose-more { margin: 0.25rem -0.5rem 0; color: var(--soft); border-top: 1px solid var(--line); }
.compose-more .nicegui-expansion-content { padding: 0 0.5rem; gap: 0; color: var(--ink); }
.panel-head { display: flex; justify-content: space-between; align-items: center; min-height: 2rem; }
.cost { margin: 0.25rem 0 0.5rem; }
/* Only the values fade: their names are pale already, and paler ones could not be read. */
.cost dd { transition: opacity 0.15s; }
.cost.stale dd { opacity: 0.8; }
.cost-row { display: flex; justify-content: space-between; gap: 1rem; padding: 0.2rem 0; }
.cost-row dt { color: var(--soft); }
.cost-row dd { margin: 0; text-align: right; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--raised); border: 1px solid var(--line);
  border-radius: 6px; padding: 0.6rem 0.75rem; margin: 0.25rem 0 0.75rem; max-height: 14rem; overflow-y: auto; }
.problem { margin-top: 0.75rem; }
.panel-notes { padding: 0 1.25rem; display: grid; gap: 0.4rem; }
.form-menu { max-width: 34rem; }
.start { width: 100%; }
.file-dialog { width: 34rem; max-width: 92vw; }
.file-list { width: 100%; height: 50vh; overflow-y: auto; }
.file-place { overflow-wrap: anywhere; }
.file-buttons { width: 100%; justify-content: flex-end; }
@media (max-width: 1000px) {
  .compose { grid-template-columns: minmax(0, 1fr); }
  .compose-side { position: static; max-height: none; }
}
@media (max-width: 700px) {
  .form-row { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 600px) {
  .studio-brand { display: none; }
  .studio-header { gap: 0.25rem; padding: 0 0.5rem; }
  .studio-link { padding: 0 0.5rem; }
  .studio-main { padding: 0.75rem; }
  .card { padding: 0.75rem; }
}
"""
