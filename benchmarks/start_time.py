"""Time from the command ``python -m tinyllm.train`` to the end of its first optimizer step.

    python benchmarks/start_time.py [--rounds 5] [setting …] [--json results.json]

Starts training with the defaults and one step, whose record is written right after it. Samples, evaluation and
checkpoints are off. The first start warms the disk's cache and prepares the data, and is not counted. The time of a
start is that of the record's file, minus that of the command. Needs an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ONE_STEP = (
    "trainer.max_steps=1",
    "trainer.log_every=1",
    "trainer.eval_every=0",
    "trainer.sample_every=0",
    "checkpoint.enabled=false",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}", flush=True)
    first, *seconds = [to_first_step(options.settings) for _ in range(options.rounds + 1)]
    print(
        f"{statistics.median(seconds):.2f} s to the end of the first step, median of {len(seconds)} starts"
        f" ({min(seconds):.2f}–{max(seconds):.2f}); the start before them took {first:.2f} s"
    )
    if options.json:
        options.json.write_text(json.dumps({"first_s": first, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")


def to_first_step(settings: list[str]) -> float:
    """Seconds until the record of the first step is in the file."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        begin = time.time()  # the clock of the file system
        command = [sys.executable, "-m", "tinyllm.train", *ONE_STEP, *settings, f"run.dir={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return (run / "metrics.jsonl").stat().st_mtime - begin


if __name__ == "__main__":
    main()
