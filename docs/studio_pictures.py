"""The pictures of the studio's pages in ``docs/``; how they are made, with Chromium and the development environment:

python -m docs.studio_pictures docs outputs

Run it in the folder of the environment, so that no path of the machine shows. The second argument is a folder with at
least two runs that were trained to use tools directly below it; the newest two are shown.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.support.chromium import ARGUMENTS

SIZE = {"width": 1280, "height": 800}
COLOURS = 128
"""Of the palette: the pictures are a third as large as with all of them."""


def start(outputs: str) -> tuple[subprocess.Popen[str], str]:
    """Start a studio; the process and its address."""
    command = [sys.executable, "-m", "tinyllm.studio", "--port", "0", "--outputs", outputs]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if address := re.search(r"http://\S+", line):
            return process, address[0]
    raise RuntimeError("the studio did not start")


def take(page: Any, root: str, folder: Path, outputs: str) -> None:
    """Bring each page into a state worth showing, and take its picture."""
    page.get_by_label("Cost").get_by_text("800k").wait_for()
    page.get_by_label("attn", exact=True).first.click()
    page.get_by_role("option", name=re.compile("^gqa")).click()
    page.get_by_label("model.n_heads", exact=True).first.fill("3")
    page.get_by_role("alert").filter(has_text="n_heads=3").first.wait_for()
    page.screenshot(path=folder / "studio-compose.png")

    newest = sorted(Path(outputs).iterdir(), key=lambda run: run.stat().st_mtime)[-2:]
    page.goto(f"{root}/runs?{urlencode([('with', run.name) for run in newest])}")
    page.locator(".curve-chart canvas").first.wait_for()
    page.wait_for_timeout(2000)  # the chart moves into place
    page.screenshot(path=folder / "studio-runs.png")

    page.goto(f"{root}/compare")
    page.get_by_label("Settings of all arms").fill("model=pico trainer.max_steps=200")
    page.get_by_label("Key or group").fill("attn")
    page.keyboard.press("Enter")
    page.get_by_label("Options").click()
    for option in ("mha", "gqa"):
        page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_text("Arms and their cost").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=folder / "studio-compare.png")

    page.goto(f"{root}/write")
    runs = page.get_by_label("Second run")
    page.wait_for_function("[...document.querySelectorAll('input')].some(input => input.value.startsWith('step '))")
    runs.click()
    page.get_by_role("option").nth(1).click()
    page.get_by_role("button", name="Chat").click()
    page.get_by_label("Tool").click()
    page.get_by_role("option", name="python_expression").click()
    page.get_by_label("Message", exact=True).fill("What is 12 times 34?")
    page.get_by_role("button", name="Write", exact=True).click()
    for side in range(2):  # the tokens before the third are those of the call and of its result
        page.locator(".tokens").nth(side).locator(".token").nth(2).hover()
        page.get_by_role("region", name="Alternatives").nth(side).get_by_role("row").nth(9).wait_for()
    page.screenshot(path=folder / "studio-write.png", full_page=True)


def main(folder: Path, outputs: str) -> None:
    """Take all pictures, and reduce them to a palette."""
    process, address = start(outputs)
    parts = urlsplit(address)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
            page = browser.new_context(viewport=SIZE).new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            take(page, f"{parts.scheme}://{parts.netloc}", folder, outputs)
            browser.close()
    finally:
        process.terminate()
        process.wait()
    for file in folder.glob("studio-*.png"):
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
