"""Find the best peak learning rate of each optimizer at each width: behind tinyllm/config/learning_rates.py.

    python benchmarks/lr_rule.py run --results experiments/lr_rule/results.jsonl [--optimizer muon] [--shape nano] …
    python benchmarks/lr_rule.py report --results experiments/lr_rule/results.jsonl

``run`` trains every missing run of the grid and appends a line for each; ``report`` prints the loss of every run and,
for each optimizer and shape, the minimum of a parabola in the logarithm of the learning rate, as a multiple of 128 /
width. Tokens per step, data and schedule are the same at all widths; the horizon gets shorter as the models get larger,
so that the grid can be finished on a CPU. ``--steps`` gives all shapes the same horizon.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Results = list[dict[str, Any]]

SHAPES: dict[str, tuple[int, int, list[str]]] = {
    "nano": (128, 300, ["model=nano"]),
    "tiny": (256, 150, ["model=tiny", "tokenizer=char"]),
    "baby": (384, 40, ["model=baby"]),
    "gpt2-6": (768, 20, ["model=gpt2", "tokenizer=char", "model.n_layers=6"]),
}
"""Width, usual steps and settings of each shape; the last one is gpt2 with half of its layers."""
CENTERS = {"muon": 0.02, "adamw": 3e-3, "lion": 5e-4}
"""The middle of each optimizer's grid is this · 128 / width."""
FACTORS = (1.0, 0.5, 2.0)
SEEDS = (1, 2)
BASE_WIDTH = 128
DIVERGED = "not finite"
"""Part of the error that ends a run whose loss or gradients are not finite."""
SHARED = (
    "trainer.batch_size=16",
    "trainer.seq_len=128",
    "trainer.sample_every=0",
    "trainer.eval_every=1000000",
    "trainer.eval_tokens=20000",
    "checkpoint.enabled=false",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one per run")
    parser.add_argument("--optimizer", nargs="+", default=list(CENTERS), choices=list(CENTERS))
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--factor", nargs="+", type=float, default=list(FACTORS), help="multiples of the grid's middle")
    parser.add_argument("--steps", type=int, help="steps of every run")
    options = parser.parse_args()
    if options.command == "report":
        report(read(options.results))
        return
    for run in grid(options):
        if not any(run.items() <= known.items() for known in read(options.results)):
            result = run | {"bpb": train(run)}
            print(json.dumps(result), flush=True)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")


def grid(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs that are asked for."""
    for seed in options.seed:
        for optimizer in options.optimizer:
            for shape in options.shape:
                for factor in options.factor:
                    width, usual_steps, _ = SHAPES[shape]
                    lr = float(f"{factor * CENTERS[optimizer] * BASE_WIDTH / width:.4g}")
                    yield {
                        "optimizer": optimizer,
                        "shape": shape,
                        "width": width,
                        "steps": options.steps or usual_steps,
                        "lr": lr,
                        "seed": seed,
                    }


def train(run: dict[str, Any]) -> float:
    """Bits per byte on the validation tokens after the run; infinity where it diverged.

    Any other error of the run ends this program.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        settings = [*SHAPES[run["shape"]][2], *SHARED, f"optimizer={run['optimizer']}", f"optimizer.lr={run['lr']}"]
        settings += [f"trainer.max_steps={run['steps']}", f"seed={run['seed']}", f"run.dir={directory}"]
        done = subprocess.run([sys.executable, "-m", "tinyllm.train", *settings], capture_output=True, text=True)
        if done.returncode and DIVERGED in done.stderr:
            return math.inf
        if done.returncode:
            sys.exit(done.stderr)
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return float([record["val/bpb"] for record in records if "val/bpb" in record][-1])


def read(file: Path) -> Results:
    """The finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def report(results: Results) -> None:
    """Print every loss, and the best learning rate of each optimizer, shape and horizon."""
    for optimizer, shape in itertools.product(CENTERS, SHAPES):
        width = SHAPES[shape][0]
        runs = [run for run in results if (run["optimizer"], run["shape"]) == (optimizer, shape)]
        for steps in sorted({run["steps"] for run in runs}, reverse=True):
            losses: dict[float, list[float]] = {}
            for run in runs:
                if run["steps"] == steps:
                    losses.setdefault(run["lr"], []).append(run["bpb"])
            means = {lr: statistics.mean(losses[lr]) for lr in sorted(losses)}
            shown = "  ".join(f"{lr:g}: {mean:.4f} ({len(losses[lr])})" for lr, mean in means.items())
            best = minimum(means)
            where = f"best {best:.3g} = {best * width / BASE_WIDTH:.3g} · 128/width" if best else "no minimum inside"
            print(f"{optimizer:6} {shape:7} width {width:4}, {steps:4} steps  {shown}  {where}")


def minimum(means: dict[float, float]) -> float | None:
    """Minimum of the parabola through the best point and its neighbors in log lr; None at the edge of the grid."""
    rates = sorted(means)
    place = rates.index(min(rates, key=means.__getitem__))
    if place in (0, len(rates) - 1):
        return None
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(rate), means[rate]) for rate in rates[place - 1 : place + 2])
    numerator = (x1 - x0) ** 2 * (y1 - y2) - (x1 - x2) ** 2 * (y1 - y0)
    denominator = (x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)
    return math.exp(x1 - numerator / denominator / 2)


if __name__ == "__main__":
    main()
