"""The studio without a mouse, for screen readers, in the dark and on a narrow screen."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chromium import RunningStudio, chromium, opened, running_studio, wait_for_command
from tests.support.run_folders import run_folder
from tests.support.training_runs import write_corpus

pytestmark = pytest.mark.slow
MOST_STOPS = 400
"""Presses of the tabulator that the longest page may need."""
LABEL = """element => {
  const copy = element.cloneNode(element !== document.body);
  copy.querySelectorAll('[aria-hidden=true]').forEach(icon => icon.remove());
  return (element.getAttribute('aria-label') || element.labels?.[0]?.innerText || copy.textContent).trim();
}"""
"""The label of an element."""
FOCUSED = f"() => ({LABEL})(document.activeElement)"
REACHABLE = f"""name => [...document.querySelectorAll('a[href], button, input, textarea, [tabindex]')].some(
  element => element.checkVisibility() && !element.disabled && new RegExp(name).test(({LABEL})(element)))"""
"""Whether an element that takes the focus has a label that matches."""
POINTED = "number => document.querySelectorAll('.written .token')[number]?.classList.contains('pointed')"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "texts").mkdir()
    write_corpus(folder / "texts" / "words.txt")
    with running_studio(folder, "--data", "texts") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def tab_to(page: Any, name: str, *, key: str = "Tab") -> None:
    """Move the focus to the element whose label begins with a name, once it is there."""
    page.wait_for_function(REACHABLE, arg=rf"^{re.escape(name)}\b")
    passed = []
    for _ in range(MOST_STOPS):
        page.keyboard.press(key)
        passed.append(page.evaluate(FOCUSED))
        if re.match(rf"{re.escape(name)}\b", passed[-1]):
            return
    raise AssertionError(f"{name} cannot be reached with {key}: {list(dict.fromkeys(passed))}")


def choose(page: Any, key: str, option: str) -> None:
    """Choose an option of a group with the arrow keys."""
    tab_to(page, key)
    page.keyboard.press("ArrowDown")
    page.get_by_role("listbox").wait_for()
    for _ in range(MOST_STOPS):
        chosen = page.locator(".q-menu .q-manual-focusable--focused")
        if chosen.count() and re.match(rf"{option}\b", chosen.inner_text()):
            page.keyboard.press("Enter")
            wait_for_command(page, f"{key}={option}")
            # The fields of another option are there at once, and the focus is where it was.
            page.wait_for_function(f"({FOCUSED})().startsWith('{key}')")
            page.get_by_role("listbox").wait_for(state="detached")
            return
        page.keyboard.press("ArrowDown")
    raise AssertionError(f"{option} cannot be reached with the arrow keys")


def test_the_whole_way_with_the_keyboard_alone(studio: RunningStudio, browser: Any) -> None:
    with opened(browser, studio) as own:
        page, press = own.page, own.page.keyboard.press
        choose(page, "dataset", "text")
        tab_to(page, "dataset.path")
        page.keyboard.type("texts/words.txt")
        wait_for_command(page, "dataset.path=texts/words.txt")
        choose(page, "model", "pico")
        tab_to(page, "trainer.max_steps")
        page.keyboard.type("1000000")
        wait_for_command(page, "trainer.max_steps=1000000")
        start = page.get_by_role("button", name="Start training")
        page.wait_for_function("button => !button.disabled", arg=start.element_handle())
        tab_to(page, "Start training")
        press("Enter")
        page.wait_for_url("**/runs?run=*")
        page.locator(".status.running").wait_for()
        page.locator(".run-figures").get_by_text("Loss", exact=True).wait_for()
        tab_to(page, "Stop")
        press("Enter")
        page.locator(".status.stopped").wait_for()
        tab_to(page, "Runs", key="Shift+Tab")
        press("Enter")
        page.wait_for_function("document.title.startsWith('Runs')")
        page.locator(".run-link").wait_for()
        tab_to(page, "All runs in the chart")
        press("Space")
        page.get_by_role("list", name="Runs in the chart").get_by_role("link").wait_for()
        tab_to(page, "Write", key="Shift+Tab")
        press("Enter")
        page.wait_for_function("[...document.querySelectorAll('input')].some(input => input.value.startsWith('step '))")
        tab_to(page, "Prompt")
        page.keyboard.type("the ")
        tab_to(page, "Tokens at most")
        page.keyboard.type("20")
        tab_to(page, "Write")
        press("Enter")
        page.locator(".token.ending").wait_for()
        tab_to(page, "Text of model 1")
        for number in range(3):
            press("ArrowRight")
            page.wait_for_function(POINTED, arg=number)
        page.get_by_role("region", name="Alternatives").first.get_by_role("row").nth(10).wait_for()
        assert own.problems == []


def test_axe_finds_nothing_wrong_with_any_page(studio: RunningStudio, browser: Any) -> None:
    """Neither in light on a wide screen nor in the dark on a narrow one, where nothing scrolls sideways, either."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    for name in ("first", "second"):
        run = run_folder(studio.outputs / name, records=5, config="optimizer:\n  lr: 0.01\n")
        (run / "checkpoints" / "step-000005").mkdir(parents=True)
        (run / "checkpoints" / "step-000005" / "manifest.json").write_text(json.dumps({"format": 1}))
    paths = ("/", "/runs?with=first&with=second", "/runs?run=first&tab=settings", "/compare", "/write")
    wrong = []
    with opened(browser, studio) as own:
        page = own.page
        for path in paths:
            page.goto(studio.root + path)
            page.wait_for_function("window.socket?.connected")
            if path.startswith("/runs"):
                page.locator(".curve-chart canvas").first.wait_for()
            for scheme, width in (("light", 1280), ("dark", 400)):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_function(
                    "dark => document.body.classList.contains('body--dark') === dark", arg=scheme == "dark"
                )
                # Colours change gradually.
                page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
                # The bar of loading files is there because axe loads the style sheets.
                found = axe.run(page, {"exclude": [["#q-loading-bar"]]}).response["violations"]
                nodes = [(one["id"], node["html"][:200]) for one in found for node in one["nodes"]]
                wrong += [f"{path} {scheme} {width}: {rule}: {html}" for rule, html in nodes]
                if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
                    wrong.append(f"{path} {scheme} {width}: scrolls sideways")
        assert own.problems == []
    assert wrong == [], "\n".join(wrong)
