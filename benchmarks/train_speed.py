"""Training speed and memory against litgpt's GPT: forward, loss, backward, clipping at 1.0, AdamW; without start-up.

    python benchmarks/train_speed.py [a b c …] [--rounds 3] [--seconds 8] [--json results.json]

Every variant runs in its own process on random tokens, in turns (A B C A B C). A figure is the median over the rounds
of the median step; the spread is the range over the rounds. Memory is the peak resident set of the whole process.
Depth, heads, width, vocabulary and tying are equal on both sides. litgpt uses torch's cross-entropy on all logits;
its plain loop is fp32 with torch's default AdamW, its fast loop bf16 autocast with fused AdamW. tinyllm uses its
defaults, but AdamW as well. Needs litgpt and an otherwise idle machine.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

ROWS: dict[str, tuple[str, dict[str, int]]] = {
    "a": ("nano, characters", {"layers": 4, "heads": 4, "width": 128, "context": 128, "batch": 64, "vocab": 65}),
    "b": ("tiny, 32000 words", {"layers": 4, "heads": 4, "width": 256, "context": 512, "batch": 8, "vocab": 32000}),
    "c": ("gpt2", {"layers": 12, "heads": 12, "width": 768, "context": 1024, "batch": 1, "vocab": 50257}),
}
SIZE = {"a": "nano", "b": "tiny", "c": "gpt2"}
VARIANTS = ("litgpt fp32", "litgpt bf16", "tinyllm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {' '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="measured time of each process, at least 3 steps")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker, seconds=options.seconds)))
        return
    results = {}
    for row in options.rows or list(ROWS):
        runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.rounds):
            for variant in VARIANTS:
                command = [sys.executable, __file__, "--worker", variant, row, "--seconds", str(options.seconds)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs[variant].append(json.loads(output.splitlines()[-1]))
        results[row] = report(row, runs)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def report(row: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print the table for one row and return its figures."""
    figures = {
        variant: {
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in of_variant),
            "slowest": min(run["tokens_per_s"] for run in of_variant),
            "fastest": max(run["tokens_per_s"] for run in of_variant),
            "peak_gb": max(run["peak_gb"] for run in of_variant),
            "parameters": of_variant[0]["parameters"],
        }
        for variant, of_variant in runs.items()
    }
    ours = figures["tinyllm"]
    print(f"\n({row}) {ROWS[row][0]}: {ROWS[row][1]}")
    print(f"{'':12} {'tokens/s':>9} {'range':>17} {'tinyllm is':>11} {'peak GB':>8} {'memory':>7} {'parameters':>11}")
    for variant, it in figures.items():
        spread = f"{it['slowest']:.0f}–{it['fastest']:.0f}"
        speed, memory = ours["tokens_per_s"] / it["tokens_per_s"], ours["peak_gb"] / it["peak_gb"]
        print(
            f"{variant:12} {it['tokens_per_s']:9.0f} {spread:>17} {speed:10.2f}× {it['peak_gb']:8.2f} {memory:6.2f}×"
            f" {it['parameters'] / 1e6:10.2f}M",
            flush=True,
        )
    return figures


def measure(variant: str, row: str, *, seconds: float) -> dict[str, float]:
    """Train in this process for a given time."""
    import torch

    shape = ROWS[row][1]
    torch.manual_seed(0)
    size = (shape["batch"], shape["context"])
    inputs, targets = (torch.randint(shape["vocab"], size) for _ in range(2))
    parameters, step = {"litgpt": litgpt_step, "tinyllm": tinyllm_step}[variant.split()[0]](variant, row)
    for _ in range(2):
        step(inputs, targets)
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < 3:
        started = time.perf_counter()
        step(inputs, targets)
        durations.append(time.perf_counter() - started)
    return {
        "tokens_per_s": inputs.numel() / statistics.median(durations),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parameters": parameters,
    }


Step = Callable[..., float]


def litgpt_step(variant: str, row: str) -> tuple[int, Step]:
    import torch
    import torch.nn.functional as F
    from litgpt import GPT, Config

    shape = ROWS[row][1]
    config = Config(
        name="benchmark",
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_embd=shape["width"],
        block_size=shape["context"],
        vocab_size=shape["vocab"],
        padded_vocab_size=shape["vocab"],
        bias=False,
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    for parameter in model.parameters():
        # The same initialization as ours: with litgpt's N(0, 1) and tied embeddings, softmax would hit slow denormals.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    fast = variant.endswith("bf16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=fast or None)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16) if fast else nullcontext():
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return sum(p.numel() for p in model.parameters()), step


def tinyllm_step(variant: str, row: str) -> tuple[int, Step]:
    import torch

    import tinyllm
    from tinyllm.data.batch import Batch
    from tinyllm.programs.builders import build_model, build_optimizer
    from tinyllm.training.objectives.next_token import NextToken
    from tinyllm.training.trainer import clip
    from tinyllm.utils.device import auto_precision, autocast, deterministic, keep_freed_memory

    shape, device = ROWS[row][1], torch.device("cpu")
    cfg = tinyllm.compose(
        f"model={SIZE[row]}", f"model.max_seq_len={shape['context']}", "tokenizer=byte", "optimizer=adamw"
    )
    keep_freed_memory()
    model = build_model(cfg, vocab_size=shape["vocab"], seed=0, device=device, allow=frozenset())
    optimizer, _ = build_optimizer(cfg, model, allow=frozenset())
    parameters = list(model.parameters())
    objective = NextToken(model)
    in_autocast = partial(autocast, device, auto_precision(device))

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        with deterministic(cfg.trainer.deterministic, device):
            with in_autocast():
                loss = objective(Batch(inputs=inputs, targets=targets)).total / targets.numel()
            loss.backward()
            clip(parameters, cfg.trainer.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

    return sum(p.numel() for p in parameters), step


if __name__ == "__main__":
    main()
