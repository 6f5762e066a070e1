"""Overhead of data parallelism: two ranks of one thread against one process of two threads, same batch.

    python benchmarks/ddp_overhead.py [--models nano baby] [--rounds 2] [--steps 25] [setting …] [--json results.json]

Alternates runs of tinyllm.train under torchrun (``strategy=<--strategy>``) with runs in one process, using the defaults
but no evaluations, samples or checkpoints. The speed of a run is the median ``speed/tokens_per_s`` of its records after
the first. The result is the median over the rounds of the ratio of the speeds, so that both meet the machine in the
same state. Needs two otherwise idle cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OFF = ("trainer.eval_every=0", "trainer.sample_every=0", "checkpoint.enabled=false")
CORES = 2
STEPS = {"nano": 60, "baby": 12}
"""Steps of a run by model, 5 to 8 seconds of training. Two rounds of both models take a minute on an idle machine."""
RECORDS = 6
"""Records of a run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of tinyllm.train")
    parser.add_argument("--models", nargs="+", default=["nano", "baby"])
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="steps of a run, if not those of its model")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step, of all ranks")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    found = {}
    for model in options.models:
        load = os.getloadavg()[0]
        steps = options.steps or STEPS.get(model, 12)
        length = [f"trainer.max_steps={steps}", f"trainer.log_every={max(1, steps // RECORDS)}"]
        given = [f"model={model}", "optimizer=adamw", *length, *OFF, *options.settings]
        rounds = []
        for _ in range(options.rounds):
            ranks = speed(
                [*given, f"strategy={options.strategy}", f"trainer.batch_size={options.batch // CORES}"], CORES
            )
            alone = speed([*given, f"trainer.batch_size={options.batch}"], 1)
            rounds.append({"ranks": ranks, "alone": alone, "ratio": ranks / alone})
            print(f"  {model}, round {len(rounds)}: {ranks:,.0f} and {alone:,.0f} tokens/s", flush=True)
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        spread = [one["ratio"] for one in rounds]
        found[model] = {**middle, "rounds": rounds, "load_before": load}
        print(
            f"{model}: {CORES} ranks ({options.strategy}) {middle['ranks']:,.0f} tokens/s, one process"
            f" {middle['alone']:,.0f}: {middle['ratio']:.3f} (from {min(spread):.3f} to {max(spread):.3f},"
            f" {len(rounds)} rounds, load {load:.2f})",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def speed(settings: list[str], processes: int) -> float:
    """Tokens per second of a training run on all cores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        command = [sys.executable, *launcher, "-m", "tinyllm.train", *settings, f"run.dir={run}"]
        threads = {name: str(CORES // processes) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return statistics.median(record["speed/tokens_per_s"] for record in records[1:])


if __name__ == "__main__":
    main()
