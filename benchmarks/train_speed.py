"""Training speed and memory against litgpt's GPT: forward, loss, backward, clipping at 1.0, AdamW; without start-up.

    python benchmarks/train_speed.py [a b c …] [--rounds 10] [--seconds 0.5] [--json results.json]

Every variant has a process of its own, which stays, and trains on random tokens. They take turns of a few steps (A B C
A B C …), so that all of them see the same state of the machine. A figure is the median over the rounds, of which the
first is left out; a ratio is the median of the rounds' ratios. The range is that over the rounds; "fastest" is that of
the fastest turns, which other programs disturb least. Memory is the peak resident set of the whole process. Depth,
heads, width, vocabulary and tying are equal on both sides. litgpt uses torch's cross-entropy on all logits; its plain
loop is fp32 with torch's default AdamW, its fast loop bf16 autocast with fused AdamW. tinyllm uses its defaults, but
AdamW as well. Needs litgpt and an otherwise idle machine.
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
RANGES = (("fastest_ms", "slowest_ms", 0), ("least", "most", 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {' '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn; at least one step")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    results = {}
    for row in options.rows or list(ROWS):
        results[row] = report(row, measure(row, rounds=options.rounds, seconds=options.seconds))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(row: str, *, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """The turns of every variant."""
    processes, turns = {}, {variant: [] for variant in VARIANTS}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--worker", variant, row]
        processes[variant] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for round_ in range(1 + rounds):
            for variant, process in processes.items():
                print(seconds, file=process.stdin, flush=True)
                turn = json.loads(process.stdout.readline())
                if round_:
                    turns[variant].append(turn)
    finally:
        for process in processes.values():
            process.kill()
    return turns


def report(row: str, turns: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print the table for one row and return its figures."""
    shape, figures = ROWS[row][1], {}
    for variant, of_variant in turns.items():
        steps = [turn["step_s"] for turn in of_variant]
        ratios = [its / ours["step_s"] for its, ours in zip(steps, turns["tinyllm"], strict=True)]
        figures[variant] = {
            "tokens_per_s": shape["batch"] * shape["context"] / statistics.median(steps),
            "step_ms": 1e3 * statistics.median(steps),
            "fastest_ms": 1e3 * min(steps),
            "slowest_ms": 1e3 * max(steps),
            "tinyllm_is": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "at_its_fastest": min(steps) / min(turn["step_s"] for turn in turns["tinyllm"]),
            "peak_gb": of_variant[-1]["peak_gb"],
            "parameters": of_variant[-1]["parameters"],
        }
    print(f"\n({row}) {ROWS[row][0]}: {shape}")
    columns = (
        f"{'tokens/s':>9} {'step ms':>8} {'range':>11} {'tinyllm is':>11} {'range':>11} {'fastest':>8} {'peak GB':>8}"
    )
    print(f"{'':12} {columns}")
    for variant, it in figures.items():
        steps_range, ratio_range = (f"{it[a]:.{n}f}–{it[b]:.{n}f}" for a, b, n in RANGES)
        print(
            f"{variant:12} {it['tokens_per_s']:9.0f} {it['step_ms']:8.0f} {steps_range:>11} {it['tinyllm_is']:10.2f}×"
            f" {ratio_range:>11} {it['at_its_fastest']:7.2f}× {it['peak_gb']:8.2f}",
            flush=True,
        )
    return figures


def work(variant: str, row: str) -> None:
    """Train in this process, a turn for each line of the input that says how long."""
    import torch

    shape = ROWS[row][1]
    torch.manual_seed(0)
    size = (shape["batch"], shape["context"])
    inputs, targets = (torch.randint(shape["vocab"], size) for _ in range(2))
    parameters, step = {"litgpt": litgpt_step, "tinyllm": tinyllm_step}[variant.split()[0]](variant, row)
    for line in sys.stdin:
        durations: list[float] = []
        while not durations or sum(durations) < float(line):
            started = time.perf_counter()
            step(inputs, targets)
            durations.append(time.perf_counter() - started)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {"step_s": statistics.median(durations), "peak_gb": peak_gb, "parameters": parameters}
        print(json.dumps(figures), flush=True)


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


def tinyllm_step(variant: str, row: str, *, kernels: bool = True) -> tuple[int, Step]:
    import torch

    import tinyllm
    from tinyllm.data.batch import Batch
    from tinyllm.nn.train_kernels import use_train_kernels
    from tinyllm.programs.builders import build_model, build_optimizer
    from tinyllm.programs.decoding_kernels import train_kernels_for
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
    precision = auto_precision(device)
    if kernels:
        use_train_kernels(objective, train_kernels_for(device, precision))
    in_autocast = partial(autocast, device, precision)

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
