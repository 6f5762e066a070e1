"""The whole way in a real browser: compose, train, watch, stop, resume, write; and what happens outside shows up.

Everything is waited for and nothing is timed: how fast it is, is measured in ``benchmarks``.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chromium import (
    PATIENCE_MS,
    Browser,
    RunningStudio,
    chromium,
    opened,
    running_studio,
    visit,
    wait_for_command,
)
from tests.support.training_runs import train_elsewhere, write_corpus

pytestmark = pytest.mark.slow
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
TINY = {"model.d_model": "32", "model.n_layers": "1", "model.n_heads": "2", "model.max_seq_len": "32"}
QUICK = {"trainer.batch_size": "4", "trainer.log_every": "5", "trainer.eval_every": "0", "trainer.sample_every": "0"}
ENDLESS = "1000000"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Where strace records the connections; None where it is missing or may not trace."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode:
        return None
    return tmp_path_factory.mktemp("trace") / "connections"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, trace: Path | None) -> Iterator[RunningStudio]:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "texts").mkdir()
    write_corpus(folder / "texts" / "words.txt")
    with running_studio(folder, "--data", "texts", trace=trace) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def choose(page: Any, key: str, option: str) -> None:
    """Choose an option of a group."""
    page.get_by_label(key, exact=True).first.click()
    page.get_by_role("option", name=re.compile(rf"^{option}( |$)")).click()
    wait_for_command(page, f"{key}={option}")
    page.get_by_role("listbox").wait_for(state="detached")


def find(page: Any, key: str) -> Any:
    """The field of a key, by search."""
    search, found = page.get_by_label("Search all settings"), page.get_by_label("Found settings")
    search.fill("")
    found.wait_for(state="hidden")  # a field of the search before would be replaced while one types
    search.fill(key)
    field = found.get_by_label(key, exact=True)
    field.wait_for()
    return field


def set_keys(page: Any, values: dict[str, str]) -> None:
    """Search keys and set them."""
    for key, value in values.items():
        find(page, key).fill(value)
        wait_for_command(page, f"{key}={value}")
    page.get_by_label("Search all settings").fill("")


def wait_for_status(browser: Browser, status: str) -> None:
    """Wait until the page of a run shows a status."""
    browser.page.locator(f".status.{status}").first.wait_for()


FIGURE = """([name, below, above]) => {
  for (const term of document.querySelectorAll('.run-figures > div')) {
    const [title, text] = [term.querySelector('dt').innerText, term.querySelector('dd').innerText];
    const value = parseFloat(text.replaceAll(',', ''));
    if (title === name && value < below && value > above) return {value};
  }
}"""


def wait_for_figure(browser: Browser, name: str, *, below: float = 1e30, above: float = -1e30) -> float:
    """Wait until a figure of a run is in a range; its value then, which the next record may change."""
    found = browser.page.wait_for_function(FIGURE, arg=[name, below, above]).json_value()
    return float(found["value"])


def test_from_compose_to_write(studio: RunningStudio, browser: Any, trace: Path | None) -> None:
    with opened(browser, studio) as own, opened(browser, studio) as other:
        page = own.page
        choose(page, "model", "pico")
        choose(page, "dataset", "text")
        page.get_by_label("Browse for dataset.path").first.click()
        page.get_by_role("dialog").get_by_text("texts").click()
        page.get_by_role("dialog").get_by_text("words.txt").click()
        page.get_by_text(re.compile(r"dataset\.path=\S*words\.txt")).wait_for()
        set_keys(page, TINY | QUICK)

        start = page.get_by_role("button", name="Start training")
        find(page, "trainer.max_steps").fill("soon")
        page.get_by_role("alert").filter(has_text="trainer.max_steps=soon").first.wait_for()
        page.wait_for_function("button => button.disabled", arg=start.element_handle())
        set_keys(page, {"trainer.max_steps": ENDLESS})
        page.wait_for_function("button => !button.disabled", arg=start.element_handle())
        page.get_by_label("Cost").get_by_text("Parameters", exact=True).wait_for()
        start.click()

        page.wait_for_url("**/runs?run=*")
        wait_for_status(own, "running")
        first = wait_for_figure(own, "Loss", below=100)
        wait_for_figure(own, "Loss", below=first)
        page.reload()
        wait_for_status(own, "running")
        wait_for_figure(own, "Loss", below=first)
        other.page.goto(page.url)
        wait_for_status(other, "running")
        wait_for_figure(other, "Loss", below=first)
        titles = [each.page.locator(".run-title").inner_text() for each in (own, other)]
        assert titles[0] == titles[1]

        page.get_by_role("button", name="Stop").click()
        wait_for_status(own, "stopped")
        wait_for_status(other, "stopped")
        stopped_at = wait_for_figure(own, "Step")
        assert wait_for_figure(other, "Step") == stopped_at
        [run] = [path.parent for path in studio.outputs.rglob("run.json")]
        assert (run / "checkpoints" / f"step-{int(stopped_at):06d}" / "manifest.json").is_file()
        page.get_by_role("button", name="Resume").click()
        wait_for_status(own, "running")
        wait_for_figure(own, "Step", above=stopped_at)
        page.get_by_role("button", name="Stop").click()
        wait_for_status(own, "stopped")

        visit(own, "Write")
        page.wait_for_function("[...document.querySelectorAll('input')].some(input => input.value.startsWith('step '))")
        page.get_by_label("Prompt").fill("the ")
        page.get_by_label("Tokens at most").fill("20")
        page.get_by_role("button", name="Write", exact=True).click()
        page.locator(".token.ending").wait_for()
        page.locator(".written .token").nth(3).hover()
        page.get_by_role("region", name="Alternatives").first.get_by_role("row").nth(10).wait_for()
        assert own.problems == other.problems == []
    if trace is not None:
        assert_nothing_left_the_machine(trace)


def assert_nothing_left_the_machine(trace: Path) -> None:
    """Every connection of the studio and of what it started was a file, or on this machine."""
    calls = [line for line in trace.read_text().splitlines() if "connect(" in line]
    addresses = [re.search(r'inet_addr\("(.*?)"\)|inet_pton\(AF_INET6, "(.*?)"', line) for line in calls]
    reached = [found[1] or found[2] for found in addresses if found]
    assert all(address in LOOPBACK for address in reached), reached
    local = ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC", "resumed>")
    others = [line for line, found in zip(calls, addresses, strict=True) if not found]
    assert all(any(family in line for family in local) for line in others), others


def test_a_run_of_a_terminal_appears_and_is_seen_to_be_lost(studio: RunningStudio, browser: Any) -> None:
    text = studio.outputs.parent / "texts" / "words.txt"
    with opened(browser, studio) as own:
        visit(own, "Runs")
        settings = [f"{key}={value}" for key, value in (TINY | QUICK).items()]
        run = studio.outputs / "of-a-terminal"
        process = train_elsewhere(
            *settings, "dataset=text", f"dataset.path={text}", f"trainer.max_steps={ENDLESS}", f"run.dir={run}"
        )
        try:
            row = own.page.get_by_role("row").filter(has_text="of-a-terminal")
            row.locator(".status.running").wait_for()
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=PATIENCE_MS / 1000)
        row.locator(".status.lost").wait_for()
        assert own.problems == []
