"""Does the best learning rate stay where it is when the model gets wider? Under muP and under the standard one.

    python experiments/mup_lr/study.py run [seed …]     # trains what is missing; seeds 1 and 2 unless others are named
    python experiments/mup_lr/study.py report           # results.csv, best.md and picture.png, of what there is

Each run is an ordinary run directory below ``outputs/mup_lr``, without its checkpoints; the command that made it is
printed. ``run`` goes on where it was stopped. Both add finished runs to ``results.csv``, of which ``report`` is made.
"""

import csv
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = Path("outputs/mup_lr")
RESULTS = HERE / "results.csv"
PARAMETRIZATIONS = ("standard", "mup")
WIDTHS = (64, 128, 256, 512)
EXPONENTS = (-8, -9, -7, -10, -6, -11, -5)
"""Learning rates are powers of two; those that are likely to be the best come first."""
STEPS = 200
SHARED = [
    "dataset=pydocs",
    "tokenizer=char",
    "model=nano",
    "model.n_layers=2",
    "model.max_seq_len=64",
    "optimizer=adamw",
    "schedule=linear",
    "schedule.min_lr=0.0",
    f"schedule.warmup_steps={STEPS // 10}",
    f"trainer.max_steps={STEPS}",
    "trainer.batch_size=16",
    f"trainer.eval_every={STEPS}",
    "trainer.eval_tokens=50000",
    "trainer.sample_every=0",
    "trainer.checkpoint_every=0",
    f"trainer.log_every={STEPS // 4}",
]
Results = dict[tuple[str, int, int, int], float]
"""Validation loss by parametrization, width, exponent of the learning rate and seed."""


def settings(parametrization: str, width: int, exponent: int, seed: int) -> list[str]:
    """The overrides of one run."""
    return [
        *SHARED,
        f"parametrization={parametrization}",
        f"model.d_model={width}",
        f"model.d_ff={4 * width}",
        f"optimizer.lr={2.0**exponent!r}",
        f"seed={seed}",
    ]


def train(seeds: list[int]) -> None:
    """Every run that is not finished; seed by seed, and the narrow ones first."""
    known = collect()
    for seed in seeds:
        for width in WIDTHS:
            for exponent in EXPONENTS:
                for parametrization in PARAMETRIZATIONS:
                    if (parametrization, width, exponent, seed) in known:
                        continue
                    place = directory(parametrization, width, exponent, seed)
                    command = [*settings(parametrization, width, exponent, seed), f"run.dir={place}", "resume=auto"]
                    print("python -m tinyllm.train", *command, flush=True)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with place.with_suffix(".log").open("w") as log:
                        subprocess.run([sys.executable, "-m", "tinyllm.train", *command], stdout=log, check=True)
                    shutil.rmtree(place / "checkpoints")
        collect()


def directory(parametrization: str, width: int, exponent: int, seed: int) -> Path:
    """Where a run lies."""
    return RUNS / f"{parametrization}-width{width}-lr2^{exponent}-seed{seed}"


def collect() -> Results:
    """What is in ``results.csv``, with the runs that are finished now."""
    found: Results = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            for row in csv.DictReader(file):
                key = row["parametrization"], int(row["width"]), int(row["log2 lr"]), int(row["seed"])
                found[key] = float(row["val/loss"])
    for place in sorted(RUNS.glob("*-seed*/run.json")):
        state = json.loads(place.read_text())
        if state.get("status") == "finished":
            parametrization, width, exponent, seed = place.parent.name.replace("lr2^-", "lr").split("-")
            key = parametrization, int(width[5:]), -int(exponent[2:]), int(seed[4:])
            found[key] = float(state["result"]["metrics"]["val/loss"])
    found = dict(sorted(found.items()))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["parametrization", "width", "log2 lr", "seed", "val/loss"])
        writer.writerows([*key, f"{loss:.6f}"] for key, loss in found.items())
    return found


def curve(found: Results, parametrization: str, width: int) -> dict[int, list[float]]:
    """The losses of all seeds, by the exponent of the learning rate."""
    losses: dict[int, list[float]] = {}
    for (one, d_model, exponent, _), loss in found.items():
        if (one, d_model) == (parametrization, width):
            losses.setdefault(exponent, []).append(loss)
    return dict(sorted(losses.items()))


def best(losses: dict[int, float]) -> float:
    """log2 of the best learning rate: the lowest point of the parabola through the three points around the best one."""
    exponents = sorted(losses)
    middle = min(range(len(exponents)), key=lambda i: losses[exponents[i]])
    if middle in (0, len(exponents) - 1):
        return float(exponents[middle])  # at the edge: there may be better ones outside
    left, here, right = (losses[exponents[middle + side]] for side in (-1, 0, 1))
    return exponents[middle] + 0.5 * (left - right) / (left - 2 * here + right)


def report() -> None:
    """The table of the best learning rates, how they go with the width, and the picture."""
    from scipy.stats import linregress

    found = collect()
    lines = ["| parametrization | width | best log2 lr, by seed | mean | val/loss there |", "|---|---|---|---|---|"]
    slopes = []
    for parametrization in PARAMETRIZATIONS:
        points = []
        for width in WIDTHS:
            by_seed: dict[int, dict[int, float]] = {}
            for (*arm, exponent, seed), loss in found.items():
                if arm == [parametrization, width]:
                    by_seed.setdefault(seed, {})[exponent] = loss
            each = [best(losses) for losses in by_seed.values()]
            points += [(math.log2(width), one) for one in each]
            lowest = min(statistics.mean(some) for some in curve(found, parametrization, width).values())
            shown = ", ".join(f"{one:.2f}" for one in each)
            lines.append(f"| {parametrization} | {width} | {shown} | {statistics.mean(each):.2f} | {lowest:.4f} |")
        fit: Any = linregress(*zip(*points, strict=True))
        slopes.append(f"{parametrization}: best learning rate ∝ width^{fit.slope:.2f} ± {fit.stderr:.2f}")
    text = "\n".join([*lines, "", *(f"- {one}" for one in slopes)]) + "\n"
    (HERE / "best.md").write_text(text)
    print(text)
    draw(found)


def draw(found: Results) -> None:
    """Validation loss against the learning rate, a line for each width; seeds are averaged and shown as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
    shades = [plt.get_cmap("cividis_r")(0.2 + 0.8 * i / (len(WIDTHS) - 1)) for i in range(len(WIDTHS))]
    for panel, parametrization in zip(panels, PARAMETRIZATIONS, strict=True):
        for width, shade, marker in zip(WIDTHS, shades, "o^sD", strict=True):
            losses = curve(found, parametrization, width)
            means = {exponent: statistics.mean(some) for exponent, some in losses.items()}
            panel.plot(list(means), list(means.values()), color=shade, marker=marker, ms=5, label=str(width))
            for exponent, some in losses.items():
                panel.plot([exponent] * len(some), some, ".", color=shade, ms=4)
            lowest = min(means, key=lambda exponent: means[exponent])
            panel.plot(lowest, means[lowest], "*", color=shade, ms=15, mec="black", mew=0.6)
        panel.set_title(parametrization)
        panel.set_xlabel("log2 of the learning rate")
        panel.legend(title="width")
        panel.grid(color="0.9")
    lowest = min(found.values())
    panels[0].set_ylim(lowest - 0.05, lowest + 1.2)
    panels[0].set_ylabel("validation loss, nats per character")
    figure.savefig(HERE / "picture.png", dpi=130)


if __name__ == "__main__":
    task, *rest = sys.argv[1:] or [""]
    if task == "report" and not rest:
        report()
    elif task == "run":
        train([int(one) for one in rest] or [1, 2])
    else:
        sys.exit(__doc__)
