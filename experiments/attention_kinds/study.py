"""Multi-head, grouped-query, multi-query and latent attention at equal parameters, the same tokens, three seeds.

    python experiments/attention_kinds/study.py run tinyshakespeare.txt      # trains what is missing
    python experiments/attention_kinds/study.py speed tinyshakespeare.txt    # tokens/s, arms in turn; machine quiet
    python experiments/attention_kinds/study.py report                       # table.md, results.csv, picture.png

Each run is an ordinary run directory below ``outputs/attention_kinds``; the command that made it is printed. ``report``
needs scipy (the t distribution).
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = Path("outputs/attention_kinds")
SEEDS = (1, 2, 3)
SHARED = [
    "model=nano",
    "trainer.max_steps=600",
    "trainer.batch_size=32",
    "trainer.eval_every=600",
    "trainer.sample_every=0",
    "trainer.checkpoint_every=0",
    "optimizer.lr=3e-3",
    "schedule=linear",
    "schedule.warmup_steps=60",
    "schedule.min_lr=0.0",
]
ARMS = {
    "mha": ["attn=mha", "model.d_ff=512"],
    "gqa": ["attn=gqa", "model.d_ff=576"],
    "mqa": ["attn=mqa", "model.d_ff=608"],
    "mla": ["attn=mla", "model.block.attn.kv_latent_dim=64", "model.d_ff=504"],
}
"""What each arm changes. The width of the feed-forward gives back the parameters that attention saves or takes."""
REFERENCE = "mha"
DATA = {
    "stdlib": ["dataset=stdlib", "tokenizer=bpe", "tokenizer.vocab_size=2000"],
    "tinyshakespeare": ["dataset=text", "tokenizer=char"],
}


def settings(data: str, arm: str, text: str) -> list[str]:
    """The overrides of an arm on a corpus."""
    path = [f"dataset.path={text}"] if data == "tinyshakespeare" else []
    return [*SHARED, *DATA[data], *path, *ARMS[arm]]


def directory(data: str, arm: str, seed: int) -> Path:
    """Where a run lies."""
    return RUNS / f"{data}-{arm}-{seed}"


def train(text: str) -> None:
    """Train every run that is not finished, seed by seed, so that what is there is always comparable."""
    for seed in SEEDS:
        for data in DATA:
            for arm in ARMS:
                place = directory(data, arm, seed)
                if finished(place):
                    continue
                command = [*settings(data, arm, text), f"seed={seed}", f"run.dir={place}", "resume=auto"]
                print("python -m tinyllm.train", *command, flush=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.with_suffix(".log").open("w") as log:
                    subprocess.run([sys.executable, "-m", "tinyllm.train", *command], stdout=log, check=True)


def finished(place: Path) -> bool:
    """Whether a run is complete."""
    file = place / "run.json"
    return file.is_file() and json.loads(file.read_text()).get("status") == "finished"


def speed(text: str, rounds: int = 3, steps: int = 100) -> None:
    """Tokens per second of each arm, arms in turn; the median over rounds of a run's second half goes to speed.json."""
    figures: dict[str, dict[str, list[float]]] = {data: {arm: [] for arm in ARMS} for data in DATA}
    for turn in range(rounds):
        for data in DATA:
            for arm in ARMS:
                place = RUNS / "speed" / f"{data}-{arm}-{turn}-{os.getpid()}"
                place.parent.mkdir(parents=True, exist_ok=True)
                command = [*settings(data, arm, text), f"run.dir={place}", f"trainer.stop_after_steps={steps}"]
                command += ["trainer.eval_every=0"]
                subprocess.run([sys.executable, "-m", "tinyllm.train", *command], check=True, capture_output=True)
                records = [r["speed/tokens_per_s"] for r in metrics(place) if "speed/tokens_per_s" in r]
                figures[data][arm].append(statistics.median(records[len(records) // 2 :]))
    (HERE / "speed.json").write_text(json.dumps(figures, indent=1) + "\n")


def metrics(place: Path) -> list[dict[str, float]]:
    """The records of a run."""
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def report() -> None:
    """Write the tables and the picture from the run directories."""
    rows = [row(data, arm) for data in DATA for arm in ARMS]
    header = list(rows[0])
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    lines = []
    for data in DATA:
        lines += [f"**{data}**", "", "| " + " | ".join(header[1:]) + " |", "|" + "---|" * (len(header) - 1)]
        lines += ["| " + " | ".join(str(v) for v in list(r.values())[1:]) + " |" for r in rows if r["data"] == data]
        lines.append("")
    (HERE / "table.md").write_text("\n".join(lines))
    print("\n".join(lines))
    draw()


def values(data: str, arm: str) -> list[float]:
    """The final val/bpb by seed: of the last step, not of the best one."""
    return [metrics(directory(data, arm, seed))[-1]["val/bpb"] for seed in SEEDS]


def row(data: str, arm: str) -> dict[str, Any]:
    """The table's row of an arm."""
    from scipy.stats import t

    info = json.loads((directory(data, arm, SEEDS[0]) / "run.json").read_text())["info"]
    described = subprocess.run(
        [sys.executable, "-m", "tinyllm.describe", *settings(data, arm, str(HERE)), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    cache = json.loads(described.stdout)["KV cache, bytes"]["per token, bf16"]
    bpb, reference = values(data, arm), values(data, REFERENCE)
    differences = [ours - theirs for ours, theirs in zip(bpb, reference, strict=True)]
    half = t.ppf(0.975, len(SEEDS) - 1) * statistics.stdev(differences) / len(SEEDS) ** 0.5
    speeds = json.loads((HERE / "speed.json").read_text())[data][arm]
    slowest, usual, fastest = min(speeds), statistics.median(speeds), max(speeds)
    return {
        "data": data,
        "attention": arm,
        "parameters": f"{info['parameters']:,}",
        "FLOPs per token, training": f"{info['flops_per_token']:,}",
        "KV bytes per token, bf16": f"{cache:,}",
        "tokens/s, 2 threads (range)": f"{usual:,.0f} ({slowest:,.0f}–{fastest:,.0f})",
        "val bpb": f"{statistics.mean(bpb):.4f} ± {statistics.stdev(bpb):.4f}",
        f"difference to {REFERENCE}, 95 %": ""
        if arm == REFERENCE
        else f"{statistics.mean(differences):+.4f} ± {half:.4f}",
    }


def draw() -> None:
    """Per-seed points of val bpb against the size of the cache."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    markers = dict(zip(ARMS, "osD^", strict=True))
    figure, panels = plt.subplots(1, len(DATA), figsize=(9, 3.6), layout="constrained")
    for panel, data in zip(panels, DATA, strict=True):
        for place, arm in enumerate(ARMS):
            bpb = values(data, arm)
            panel.plot([place] * len(bpb), bpb, markers[arm], color="black", mfc="none", ms=7)
            panel.plot([place - 0.25, place + 0.25], [statistics.mean(bpb)] * 2, color="black", lw=1.5)
        panel.set_xticks(range(len(ARMS)), list(ARMS))
        panel.set_title(data)
        panel.set_ylabel("validation bits per byte")
        panel.margins(x=0.15)
    figure.suptitle("Equal parameters, equal tokens: one mark a seed, the line is the mean", fontsize=10)
    figure.savefig(HERE / "picture.png", dpi=130)


if __name__ == "__main__":
    task, *rest = sys.argv[1:] or [""]
    if task == "report":
        report()
    elif task in ("run", "speed") and len(rest) == 1:
        {"run": train, "speed": speed}[task](rest[0])
    else:
        sys.exit(__doc__)
