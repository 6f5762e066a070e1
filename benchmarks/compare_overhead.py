"""Overhead of ``compare`` over its bare runs: composing, matching, measuring generation, writing the report.

    python benchmarks/compare_overhead.py [--arms attn=mha,gqa] [--seeds 2] [--json results.json] [setting …]

Times one comparison. Then starts each of its runs again with the command from its report, in another directory, and
times those. The result is the ratio of the two times, minus 1. Needs an otherwise idle machine.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT = ("trainer.batch_size=32", "budget.amount=1e6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.compare")
    parser.add_argument("--arms", default="attn=mha,gqa")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "study"
        given = [options.arms, f"seeds={options.seeds}", *SHORT, *options.settings, f"out={out}"]
        whole = timed([sys.executable, "-m", "tinyllm.compare", *given])
        study = json.loads((out / "study.json").read_text())
        bare = 0.0
        for number, run in enumerate(study["runs"]):
            words = [one for one in shlex.split(run["command"])[1:] if not one.startswith("run.dir=")]
            bare += timed([sys.executable, *words, f"run.dir={place}/bare-{number}"])
    print(f"{len(study['runs'])} runs: {bare:.1f} s bare, {whole:.1f} s compared, {whole / bare - 1:+.2%}")
    if options.json:
        options.json.write_text(json.dumps({"bare_s": bare, "compared_s": whole}, indent=1) + "\n", encoding="utf-8")


def timed(command: list[str]) -> float:
    """Run a program and return its seconds."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
