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
    ui.colors(primary=ACCENT, dark="#1b1f24", dark_page="#14171a", positive="#2e7d4f", negative="#b3372f")
    dark = ui.dark_mode(studio.dark)
    ui.html('<a class="skip" href="#content">Skip to content</a>', sanitize=False)
    with ui.header(elevated=False).classes("studio-header"):
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
    with ui.element("main").props("id=content tabindex=-1").classes("studio-main"):
        yield


STYLE = """
:root { --line: #d9dee3; --soft: #5a6672; --ground: #ffffff; --raised: #f6f8fa; --accent: #2b5f84; --ink: #1c2126;
  --bad: #a8322a; --good: #2e7d4f; --warn: #8a5a00; }
.body--dark { --line: #343b43; --soft: #a3adb8; --ground: #14171a; --raised: #1b1f24; --accent: #8ec1e6; --ink: #e6e9ec;
  --bad: #ff9a92; --good: #7fd6a3; --warn: #f0c674; }
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
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.card { background: var(--ground); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.soft { color: var(--soft); }
.bad { color: var(--bad); }
.good { color: var(--good); }
.warn { color: var(--warn); }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
.figures { font-variant-numeric: tabular-nums; }
h2.title { font-size: 1.05rem; line-height: 1.4; font-weight: 600; margin: 0; }
@media (max-width: 600px) {
  .studio-brand { display: none; }
  .studio-header { gap: 0.25rem; padding: 0 0.5rem; }
  .studio-link { padding: 0 0.5rem; }
  .studio-main { padding: 0.75rem; }
  .card { padding: 0.75rem; }
}
"""
