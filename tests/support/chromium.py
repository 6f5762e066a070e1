"""A studio as a process of its own, and real browsers that use it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PATIENCE_MS = 180_000
"""Milliseconds after which a wait gives up; a machine may be busy, and a run needs seconds of an idle one to start."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass
class RunningStudio:
    """A studio that listens. Each browser needs an address of its own, which the studio prints.

    Attributes:
        process: the studio.
        lines: what it has printed.
        n_admitted: browsers that have opened it.
    """

    process: subprocess.Popen[str]
    outputs: Path
    lines: list[str] = field(default_factory=list)
    n_admitted: int = 0
    _news: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Read what it prints until it ends; runs in a thread."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def addresses(self) -> list[str]:
        """The addresses printed so far, each with a token for one browser."""
        return re.findall(r"http://\S+token=\S+", "\n".join(self.lines))

    def address(self, number: int = 0) -> str:
        """The address for a browser; the next is printed once one is used."""

        def is_there() -> bool:
            return len(self.addresses) > number or self.process.poll() is not None

        with self._news:
            assert self._news.wait_for(is_there, PATIENCE_MS / 1000), self.lines
        assert len(self.addresses) > number, self.lines
        return self.addresses[number]

    @property
    def root(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.address())
        return f"{parts.scheme}://{parts.netloc}"


@contextlib.contextmanager
def running_studio(folder: Path, *arguments: str, trace: Path | None = None) -> Iterator[RunningStudio]:
    """A studio on a free port, in an empty folder with ``outputs`` below it.

    Args:
        trace: record the network connections of the studio and of all that it starts into this file, with strace.
    """
    pytest.importorskip("nicegui", reason="needs the extra studio")
    outputs = folder / "outputs"
    outputs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tinyllm.studio", "--port", "0", "--outputs", "outputs", *arguments]
    if trace is not None:
        command = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", str(trace), *command]
    settings = {"PYTHONWARNINGS": "", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stderr=subprocess.PIPE, text=True)
    studio = RunningStudio(process, outputs)
    reader = threading.Thread(target=studio.read)
    reader.start()
    try:
        yield studio
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_MS / 1000)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_runs(outputs)
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def end_runs(outputs: Path) -> None:
    """Kill what a studio started and a failed test left behind; it would outlive the studio, as it should."""
    for record in (outputs / ".studio" / "starts").glob("*.json"):
        pid = json.loads(record.read_text())["pid"]
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/cwd").resolve() == outputs.parent.resolve():
                os.kill(pid, signal.SIGKILL)


@dataclass
class Browser:
    """A browser that refuses all other hosts and notes what goes wrong.

    Attributes:
        problems: messages of the console, errors in scripts, and requests to other hosts.
    """

    page: Any
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A Chromium without a window, with a fresh profile; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs chromium: apt install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(chromium: Any, studio: RunningStudio, **context: Any) -> Iterator[Browser]:
    """A browser that has opened the studio: cookies, storage and cache are its own.

    Args:
        context: further settings, such as ``viewport`` and ``color_scheme``.
    """
    own = urlsplit(studio.root).netloc
    with contextlib.closing(chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))) as made:
        made.set_default_timeout(PATIENCE_MS)
        browser = Browser(made.new_page())

        def guard(route: Any) -> None:
            parts = urlsplit(route.request.url)
            if parts.netloc == own or parts.scheme in ("data", "blob"):
                route.continue_()
            else:
                browser.problems.append(f"a request to another host: {route.request.url}")
                route.abort()

        def watch_socket(socket: Any) -> None:
            if urlsplit(socket.url).netloc != own:
                browser.problems.append(f"a websocket to another host: {socket.url}")

        made.route("**/*", guard)
        page = browser.page
        page.on("websocket", watch_socket)
        page.on("pageerror", lambda error: browser.problems.append(f"an error in a script: {error}"))
        page.on("console", lambda message: note(browser, message))
        page.goto(studio.address(studio.n_admitted))
        studio.n_admitted += 1
        page.get_by_role("navigation", name="Pages").wait_for()
        yield browser


def note(browser: Browser, message: Any) -> None:
    """Record a message of the console that tells of a problem.

    A connection that a studio on a busy machine let lapse is none: the page connects again, and one that could not
    would fail the test.
    """
    if message.type in ("error", "warning") and not message.text.startswith("WebSocket connection to"):
        browser.problems.append(f"console: {message.type}: {message.text}")


def visit(browser: Browser, name: str) -> None:
    """Go to a page by its link, and wait for the websocket that makes it live."""
    page = browser.page
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
    page.wait_for_function("name => document.title.startsWith(name)", arg=name)
    page.wait_for_function("window.socket?.connected")


def wait_for_command(page: Any, text: str) -> None:
    """Wait until the command on Compose contains a text: what was done has reached the studio, and come back."""
    page.locator(".command").filter(has_text=text).wait_for()
