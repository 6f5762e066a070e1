"""The page in a real browser: no network requests, no console messages, working interaction."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import made_study as made
from tinyllm.studies.report import write_report

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-default-apps"]
ACT = """
const find = (selector) => document.querySelector(selector);
const fire = (node, kind, more) => node.dispatchEvent(new PointerEvent(kind, { bubbles: true, ...more }));
const names = () => [...document.querySelectorAll("#arms tbody .name")].map((node) => node.textContent);
const seen = { start: names() };
const point = find("#differences .point");
point.scrollIntoView();
const box = point.getBoundingClientRect();
fire(point.closest("svg"), "pointermove", { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 });
seen.readout = find("#readout").textContent;
seen.readoutShown = !find("#readout").hidden;
const heading = document.querySelectorAll("#arms thead th")[1];
heading.click();
seen.ascending = names();
heading.click();
seen.descending = names();
const button = find('.legend button[data-for="1"]');
const hidden = () => getComputedStyle(find('#curves svg [data-arm="1"]')).display === "none";
seen.before = hidden();
button.click();
seen.hidden = hidden();
button.click();
seen.after = hidden();
const shown = () => [...document.querySelectorAll("#curves .pictures > *")].map(
  (node) => getComputedStyle(node).display !== "none");
seen.axis = shown();
document.querySelectorAll("#curves input")[1].click();
seen.other = shown();
document.body.dataset.seen = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("a study")
    write_report(made.study(arms=3), directory)
    return directory / "report.html"


def opened(browser: str, page: Path, place: Path) -> tuple[str, list[str], list[str]]:
    """The loaded document, the console messages, and the addresses that the page requested.

    The browser also makes requests of its own; their log entries name no origin.
    """
    log = place / f"{page.stem}.net.json"
    own = [f"--user-data-dir={place / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [browser, *QUIET, *own, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = [event for event in events if "url" in event and event.get("initiator", "not an origin") != "not an origin"]
    return done.stdout, messages, [event["url"] for event in asked]


def test_page_opens_without_messages_and_requests(browser: str, page: Path, tmp_path: Path) -> None:
    document, messages, addresses = opened(browser, page, tmp_path)
    assert "</html>" in document and messages == []
    assert addresses == []


def test_errors_and_requests_of_a_page_are_detected(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefined.x</script>", encoding="utf-8")
    _, messages, addresses = opened(browser, page, tmp_path)
    assert any("TypeError" in line for line in messages)
    assert "http://127.0.0.1:9/x.png" in addresses


def test_interaction(browser: str, page: Path, tmp_path: Path) -> None:
    """Readout, sorting, hiding an arm and choosing the axis, driven by a script that the policy would block."""
    text = page.read_text(encoding="utf-8")
    acted = tmp_path / "acted.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    acted.write_text(text.replace("</body>", f"<script>{ACT}</script></body>"), encoding="utf-8")
    document, messages, _ = opened(browser, acted, tmp_path)
    assert messages == []
    found = re.search(r'<body[^>]* data-seen="([^"]+)"', document)
    assert found is not None
    seen: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
    assert seen["start"] == ["mha", "gqa", "mqa"]
    assert seen["ascending"] == ["mha", "gqa", "mqa"] and seen["descending"] == ["mqa", "gqa", "mha"]
    assert seen["readoutShown"] and re.fullmatch(r"gqa, seed \d: [+−]0\.\d{4}", seen["readout"])
    assert [seen[key] for key in ("before", "hidden", "after")] == [False, True, False]
    assert (seen["axis"], seen["other"]) == ([True, False, False], [False, True, False])


def test_injected_script_does_not_run(browser: str, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'taken'</script></body>")
    bad = tmp_path / "injected.html"
    bad.write_text(text, encoding="utf-8")
    document, messages, _ = opened(browser, bad, tmp_path)
    assert "<title>taken" not in document and any("Content Security Policy" in line for line in messages)
