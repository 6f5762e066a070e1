"""How long the studio takes to list and to draw many runs, and to show what happens to one.

    python benchmarks/studio_load.py [--runs 100] [--records 1000] [--browser /usr/bin/chromium]

Writes that many run directories, each with so many records, into a temporary folder. Printed are the seconds of the
first look at all runs, of the next one, in which nothing has changed, of the first chart with a curve of every run, all
records parsed, and of that chart after one run has got one more record, with the bytes parsed and the points sent. With
``--browser``, also the seconds from the request of the page in Chromium until the table is there and until the chart is
drawn, the studio being a process of its own that sees the runs for the first time; and, beside these runs, how long
after its run.json a run that was started in a terminal stands in the table, and how long after ``kill -9`` it stands
there as lost. Needs an otherwise idle machine.
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tinyllm.studies.report.theme import style
from tinyllm.studio.catalogue import FRESH_S, Catalogue
from tinyllm.studio.chart import Curve, chart_options

METRIC, AXIS = "train/loss", "tokens"
RELOADS = 5
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--records", type=int, default=1000, help="records of each run")
    parser.add_argument("--browser", help="path of Chromium; needs playwright")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            write_run(Path(folder), number, options.records)
        measure(Path(folder))
        if options.browser:
            browse(Path(folder), options.browser)


def write_run(folder: Path, number: int, records: int) -> None:
    """A finished run with the metrics of a usual one."""
    draw, path = random.Random(number), folder / f"2026-01-{number % 28 + 1:02d}" / f"run-{number:03d}"
    path.mkdir(parents=True)
    info = {"max_steps": 10 * records, "planned_tokens": records * 81_920, "parameters": 804_480, "dataset": "text"}
    result = {"step": 10 * records, "seconds": 60.0, "best_val_loss": 1.5}
    (path / "run.json").write_text(json.dumps({"status": "finished", "info": info, "result": result, "facts": {}}))
    with (path / "metrics.jsonl").open("x") as file:
        for count in range(1, records + 1):
            tokens, loss = 81_920 * count, 1.5 + 3 * math.exp(-8 * count / records) + 0.1 * draw.random()
            record = {"step": 10 * count, "tokens": tokens, "flops": tokens * 5_020_000, "seconds": count * 0.137}
            record |= {"train/lr": 1e-3 * (1 - count / records), "train/grad_norm": draw.random(), METRIC: loss}
            record |= {"train/tokens": tokens, "speed/tokens_per_s": 6e4 * draw.random(), "memory/peak_bytes": 4e8}
            if count % 10 == 0:
                record |= {"val/loss": loss + 0.05, "val/ppl": math.exp(loss), "val/bpb": loss / math.log(2)}
            file.write(json.dumps(record) + "\n")


def measure(folder: Path) -> None:
    """List and draw in this process."""
    runs, begin = Catalogue(folder), time.perf_counter()
    rows = runs.rows()
    seconds = time.perf_counter() - begin
    time.sleep(FRESH_S)
    begin = time.perf_counter()
    runs.rows()
    print(f"{len(rows)} runs listed: {seconds:.3f} s, again {time.perf_counter() - begin:.3f} s")
    names = [row.id for row in rows]
    seconds, points, parsed = draw_all(runs, names)
    print(f"all in a chart: {seconds:.3f} s, {parsed:,} bytes parsed, {points:,} points sent")
    with (folder / names[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10**6, AXIS: 10**9, METRIC: 1.0}) + "\n")
    seconds, points, more = draw_all(runs, names)
    print(f"after one more record: {seconds:.3f} s, {more - parsed:,} bytes parsed, {points:,} points sent")


def draw_all(runs: Catalogue, names: list[str]) -> tuple[float, int, int]:
    """Seconds, points sent, and bytes parsed so far for a chart of all runs as the page sends it."""
    begin, curves, parsed = time.perf_counter(), [], 0
    for number, name in enumerate(names):
        tail = runs.metrics(name)
        assert tail is not None
        x, y = tail.series(METRIC, AXIS)
        curves.append(Curve(name=name, style=style(number), x=x, y=y))
        parsed += tail.parsed
    options = chart_options(curves, axis=AXIS, title=METRIC, dark=False)
    json.dumps(options)
    return time.perf_counter() - begin, sum(len(line["data"]) for line in options["series"]), parsed


def browse(folder: Path, browser: str) -> None:
    """Open the page in a browser, first the table, then the chart of all runs."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "tinyllm.studio", "--port", "0", "--outputs", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as studio:
        try:
            assert studio.stdout is not None
            address = next(found[0] for line in studio.stdout if (found := re.search(r"http://\S+", line)))
            with sync_playwright() as driver:
                page = driver.chromium.launch(executable_path=browser, args=FLAGS).new_page()
                page.goto(address)
                base = address.partition("/?")[0]
                page.goto(f"{base}/write")  # scripts and styles are in the browser's cache now
                begin = time.perf_counter()
                page.goto(f"{base}/runs")
                page.wait_for_selector(".run-link")
                print(f"table in the browser: {time.perf_counter() - begin:.2f} s")
                time.sleep(3)  # in which a person looks at the table, and the studio reads ahead
                begin = time.perf_counter()
                page.click("thead .q-checkbox")
                wait_for_chart(page)
                label = page.get_attribute(".curve-chart", "aria-label")
                print(f"chosen and drawn ({label}): {time.perf_counter() - begin:.2f} s")
                reloads = []
                for _ in range(RELOADS):
                    time.sleep(1)
                    begin = time.perf_counter()
                    page.reload()
                    page.wait_for_selector(".run-link")
                    wait_for_chart(page)
                    reloads.append(time.perf_counter() - begin)
                shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(reloads))
                print(f"reloaded with table and chart: {statistics.median(reloads):.2f} s, the median of {shown}")
                page.goto(f"{base}/runs")
                page.wait_for_selector(".run-link")
                follow(page, folder / "of-a-terminal")
        finally:
            studio.kill()


def wait_for_chart(page: Any) -> None:
    """Wait until the curves of several runs are drawn."""
    page.wait_for_selector('.curve-chart[aria-label*=" runs"] canvas', timeout=60_000)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def follow(page: Any, run: Path) -> None:
    """Start a run as in a terminal and kill it; the page of the table is open meanwhile."""
    settings = ["model=pico", "trainer.max_steps=1000000", "trainer.eval_every=0", f"run.dir={run}"]
    command = [sys.executable, "-m", "tinyllm.train", *settings]
    row = page.get_by_role("row").filter(has_text=run.name)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not (run / "run.json").is_file():
                assert process.poll() is None, "the run has ended"
                time.sleep(0.002)
            begin = time.perf_counter()
            row.locator(".status.running").wait_for()
            print(f"a run of a terminal in the table: {time.perf_counter() - begin:.2f} s after its run.json")
            time.sleep(2)
        finally:
            process.kill()
        begin = time.perf_counter()
        row.locator(".status.lost").wait_for()
        print(f"shown as lost: {time.perf_counter() - begin:.2f} s after kill -9")


if __name__ == "__main__":
    main()
