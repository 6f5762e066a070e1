"""Delay that a logger adds to a run: to its first step, its last step and its end.

    python benchmarks/logger_delay.py [--loggers wandb tensorboard] [--rounds 5] [--steps 200] [--json results.json]

Alternates programs with logger=none and with each logger; wandb runs offline. Reports seconds since the start of the
program (medians over the rounds) and the difference to logger=none. Needs an otherwise idle machine.
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

SETTINGS = ("model=nano", "trainer.log_every=1", "trainer.eval_every=0", "trainer.sample_every=0")
MOMENTS = ("first step", "last step", "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.train")
    parser.add_argument("--loggers", nargs="*", default=["wandb", "tensorboard"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    loggers = ["none", *options.loggers]
    runs: dict[str, list[tuple[float, ...]]] = {logger: [] for logger in loggers}
    print(f"load {os.getloadavg()[0]:.2f}")
    for _ in range(options.rounds):
        for logger in loggers:
            runs[logger].append(run(logger, options.steps, options.settings))
    medians = {logger: [statistics.median(moment) for moment in zip(*of, strict=True)] for logger, of in runs.items()}
    for logger, figures in medians.items():
        cells = zip(MOMENTS, figures, medians["none"], strict=True)
        print(f"{logger:12}" + ", ".join(f"{name} {value:.2f} s ({value - bare:+.2f})" for name, value, bare in cells))
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n", encoding="utf-8")


def run(logger: str, steps: int, settings: list[str]) -> tuple[float, ...]:
    """Seconds until the first step, the last step and the end of a run."""
    offline = {"WANDB_MODE": "offline"}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tinyllm.train", *SETTINGS, f"trainer.max_steps={steps}", *settings]
        command += [f"logger={logger}", f"run.dir={place}/run"]
        began = time.perf_counter()
        seen = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | offline) as process:
            assert process.stdout is not None
            for line in process.stdout:
                for step in (1, steps):
                    if line.startswith(f"step {step}/"):
                        seen.setdefault(step, time.perf_counter() - began)
        if process.returncode:
            raise SystemExit(f"the run failed: {' '.join(command)}")
        return seen[1], seen[steps], time.perf_counter() - began


if __name__ == "__main__":
    main()
