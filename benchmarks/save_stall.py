"""Time that a checkpoint blocks training, saved synchronously and in the background from a snapshot.

    python benchmarks/save_stall.py [--megabytes 100 400] [--saves 5] [--directory .] [--json results.json]

The state is fp32 weights plus two moments, a third of the megabytes each. "at once" is the time of a synchronous save.
"held up" is the time that an asynchronous save takes from the loop (snapshot and commit), and "first" that of the first
one, which also allocates the snapshot. "written after" is how long the background thread writes, and "steps meanwhile"
the speed of a loop of matrix products during that time relative to the loop alone; if training uses all cores, the
writer competes with it. Medians over the saves. Needs an otherwise idle machine and a disk like that of real runs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm.runs.checkpoint_writer import Saver

WIDTH = 1024
TEXTS = {"config.yaml": "\n", "overrides.yaml": "\n"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100, 400])
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write; removed afterwards")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    results = {}
    print(f"{torch.get_num_threads()} threads")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.directory) as place:
            results[megabytes] = figures = measure(Path(place), megabytes, options.saves)
        share = figures["held up"] / figures["at once"]
        print(f"{megabytes} MB: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        print(f"{megabytes} MB: held up for {share:.1%} of a synchronous save")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(place: Path, megabytes: int, saves: int) -> dict[str, float]:
    """All figures are seconds except "steps meanwhile", a ratio."""
    rows = max(1, round(megabytes * 1e6 / 3 / 4 / WIDTH / 8))
    weights = {f"w{index}": torch.randn(rows, WIDTH) for index in range(8)}
    moments = {name: {"m": torch.randn_like(one), "v": torch.rand_like(one)} for name, one in weights.items()}
    state: dict[str, Any] = {"optimizer": moments, "step": torch.tensor(1.0)}
    at_once, held_up, written_after, slowed = [], [], [], []
    synchronous, background = (saver(place / str(kind), asynchronous=kind) for kind in (False, True))
    product = torch.randn(512, 512)
    alone = steps_until(product, lambda seconds: seconds > 2)
    for step in range(1, saves + 1):  # interleaved, so that other load affects both
        start = time.perf_counter()
        synchronous.begin(step=step, weights=weights, state=state, best=False)
        synchronous.commit()
        at_once.append(time.perf_counter() - start)
        start = time.perf_counter()
        background.begin(step=step, weights=weights, state=state, best=False)
        begun = time.perf_counter()
        slowed.append(steps_until(product, lambda seconds: background.written()) / alone)
        end = time.perf_counter()
        background.commit()
        held_up.append(begun - start + time.perf_counter() - end)
        written_after.append(end - start)
    return {
        "at once": statistics.median(at_once),
        "held up": statistics.median(held_up[1:] or held_up),
        "first": held_up[0],
        "written after": statistics.median(written_after),
        "steps meanwhile": statistics.median(slowed),
    }


def saver(directory: Path, *, asynchronous: bool) -> Saver:
    directory.mkdir()
    return Saver(directory, texts=TEXTS, facts={}, keep=2, asynchronous=asynchronous)


def steps_until(product: Tensor, done: Callable[[float], bool]) -> float:
    """Matrix products per second, until ``done(seconds_passed)`` is true."""
    start, steps = time.perf_counter(), 0
    while not done(time.perf_counter() - start):
        product @ product
        steps += 1
    return steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
