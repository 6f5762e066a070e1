"""What other sites, other programs and hostile run directories try against a studio: with a real browser and sockets.

The refusals are tested without a browser in ``test_access.py`` and ``test_guard.py``.
"""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.chromium import PATIENCE_MS, RunningStudio, chromium, opened, running_studio, visit

pytestmark = pytest.mark.slow
MARKUP = "<img src=x onerror=document.hacked=1><script>document.hacked=1</script><b>bold</b>"
NAME = "<img src=x onerror=document.hacked=1>"
"""Markup that a folder can be called."""
GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    folder = tmp_path_factory.mktemp("studio")
    write_hostile_run(folder / "outputs")
    with running_studio(folder) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextmanager
def other_site(content: str) -> Iterator[str]:
    """The address of another site of this machine, with one page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


FOREIGN = """<!doctype html><title>other</title><script>
const results = {};
async function attempt(root) {
  const address = root + '/_nicegui_ws/socket.io/?EIO=4&transport=';
  for (const [name, path, options] of [
    ['read', '/', {credentials: 'include'}],
    ['post', '/', {method: 'POST', mode: 'no-cors', credentials: 'include', body: 'x'}],
    ['polling', '/_nicegui_ws/socket.io/?EIO=4&transport=polling', {credentials: 'include'}],
  ]) {
    try { const answer = await fetch(root + path, options); results[name] = answer.type + answer.status; }
    catch (error) { results[name] = 'refused'; }
  }
  results.socket = await new Promise(resolve => {
    const socket = new WebSocket(address.replace('http', 'ws') + 'websocket');
    socket.onopen = () => resolve('open');
    socket.onerror = () => resolve('refused');
  });
  return results;
}
</script>"""


def test_another_site_in_the_same_browser_gets_nothing(studio: RunningStudio, browser: Any) -> None:
    with other_site(FOREIGN) as other:
        with opened(browser, studio) as own:
            own.page.context.unroute_all()
            foreign = own.page.context.new_page()
            foreign.goto(other)
            results = foreign.evaluate("root => attempt(root)", studio.root)
            assert results == {"read": "refused", "post": "refused", "polling": "refused", "socket": "refused"}
            refused = [foreign.request.post(studio.root, headers={"Origin": other.rstrip("/")}).status]
            refused.append(foreign.request.get(studio.root, headers={"Host": "rebound.example"}).status)
            assert refused == [403, 403], "by the studio too, and not by the browser alone; the other is a foreign name"
            own.page.reload()
            own.page.get_by_role("navigation", name="Pages").wait_for()
            assert own.problems == []
        with closing(browser.new_context()) as stranger:
            page = stranger.new_page()
            for path in ("/", "/runs", "/write", "/?token=guess", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
                answer = page.goto(studio.root + path)
                assert answer is not None and answer.status == 401, path
                assert page.get_by_role("navigation").count() == 0
            used = page.goto(studio.address())
            assert used is not None and used.status == 401, "a token admits one browser"


def spoken(studio: RunningStudio, request: bytes, *, then: bytes = b"", times: int = 0) -> tuple[bytes, int]:
    """Send raw bytes; returns what came back, and how often ``then`` could be sent before the studio hung up."""
    parts = urlsplit(studio.root)
    sent = 0
    with closing(socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_MS / 1000)) as connection:
        connection.sendall(request)
        try:
            for _ in range(times):
                connection.sendall(then)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    return answer, sent


def test_large_and_crooked_requests_are_refused_early(studio: RunningStudio, browser: Any) -> None:
    with opened(browser, studio) as own:
        [cookie] = own.page.context.cookies()
        host = urlsplit(studio.root).netloc
        known = f"Host: {host}\r\nCookie: {cookie['name']}={cookie['value']}\r\nConnection: close\r\n"
        upload = f"POST /_nicegui/upload HTTP/1.1\r\n{known}Content-Length: {GIGABYTE}\r\n\r\n".encode()
        answer, sent = spoken(studio, upload, then=bytes(1 << 20), times=GIGABYTE >> 20)
        assert answer.startswith(b"HTTP/1.1 413") or answer == b""
        assert sent < 64, "refused after its header, not after a gigabyte"
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        stream = f"POST /runs HTTP/1.1\r\n{known}Transfer-Encoding: chunked\r\n\r\n".encode()
        answer, sent = spoken(studio, stream, then=chunk, times=GIGABYTE >> 20)
        assert not answer.startswith(b"HTTP/1.1 200") and sent < 64
        for path in (
            "/../../../../etc/passwd",
            "/_nicegui/3.18.0/static/../../../../../../etc/passwd",
            "/_nicegui/3.18.0/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "/_nicegui/3.18.0/static/..%2f..%2f..%2f..%2f..%2fetc/passwd",
            "/?from=/etc",
            "/?from=../../../etc",
            "/runs?run=/etc/passwd",
            "/runs?run=../../etc",
        ):
            answer, _ = spoken(studio, f"GET {path} HTTP/1.1\r\n{known}\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 ") and b"root:" not in answer, path
            assert not answer.startswith(b"HTTP/1.1 5"), path
        own.page.reload()
        own.page.get_by_role("navigation", name="Pages").wait_for()
        assert own.problems == [] and studio.process.poll() is None


def write_hostile_run(outputs: Path) -> Path:
    """A run whose name, settings, metrics, samples and log are markup."""
    run = outputs / NAME
    checkpoint = run / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "note": MARKUP}))
    facts = {"status": "finished", "info": {"device": MARKUP, "n_params": 3}, "choices": {"attn": MARKUP}}
    facts |= {"host": MARKUP, "commit": MARKUP, "reason": MARKUP, "result": {"step": 2, "reason": MARKUP}}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "config.yaml").write_text(json.dumps({"run": {"name": MARKUP}, MARKUP: {MARKUP: MARKUP}}))
    records = [{"step": step, "train/loss": 3.0 - step, MARKUP: 1.0 * step} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    events = [{"step": 1, "time": 1.0, "event": kind, "text": MARKUP} for kind in ("sample", "note", MARKUP)]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    run.with_name(f"{NAME}.log").write_text(MARKUP + "\n")
    return run


def look_at_the_run(page: Any) -> None:
    """Open every part of the page of the hostile run."""
    # Not a click: one that meets a table that is just being built is lost.
    page.goto(page.get_by_role("link", name=NAME).first.evaluate("link => link.href"))
    page.get_by_role("heading", name=NAME).wait_for()
    page.locator(".curve-chart canvas").first.wait_for()  # with the metrics that can be chosen
    page.get_by_label("Metrics").click()
    page.get_by_role("option", name=MARKUP).click()
    page.keyboard.press("Escape")
    page.locator(".curve-chart canvas").first.hover()  # the tip names the metrics
    for tab in ("Samples", "Settings", "Machine", "Log"):
        page.get_by_role("tab", name=tab).click()
        page.locator("[role=tabpanel]").get_by_text(MARKUP).first.wait_for()


def test_markup_in_run_directories_stays_text(studio: RunningStudio, browser: Any) -> None:
    with opened(browser, studio) as own:
        page = own.page
        for name in ("Compose", "Runs", "Compare", "Write"):
            visit(own, name)
            if name in ("Runs", "Write"):
                page.wait_for_function(
                    "text => document.body.innerText.includes(text) ||"
                    " [...document.querySelectorAll('input')].some(input => input.value.includes(text))",
                    arg=NAME,
                )
            if name == "Runs":
                look_at_the_run(page)
            if name == "Write":
                page.get_by_label("Prompt").fill(MARKUP)
                page.get_by_role("button", name="Write").click()
                page.get_by_role("alert").filter(has_text="step-000002").first.wait_for()
            assert page.locator("img[src=x], main script, main b").count() == 0, name
            assert page.evaluate("document.hacked") is None, name
        assert own.problems == []
