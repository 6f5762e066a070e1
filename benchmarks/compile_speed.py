"""Gain of ``trainer.compile``: tokens/s of training steps compiled and eager, and the compile time.

    python benchmarks/compile_speed.py [nano baby …] [--precision fp32 bf16] [--override key=value …]

Each row runs in its own process, which trains the same model compiled and eager in turns of a few steps, so that other
load on the machine affects both. Reports the median step: forward, loss, backward, clipping and AdamW on random tokens,
with the default settings of the model and of ``trainer.deterministic``. "Pays after" is the training time after which
the gain exceeds the compile time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["nano", "baby"], help="options of the group model")
    parser.add_argument("--precision", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each round, compiled and uncompiled")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--override", nargs="*", default=[], help="further settings of the model or of trainer.compile")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker, options)))
        return
    print(f"{'':22} {'compiling':>10} {'eager':>12} {'compiled':>12} {'ratio':>7} {'pays after':>11}")
    for model in options.models:
        for precision in options.precision:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", model, precision]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            it = json.loads(output.splitlines()[-1])
            ratio = it["compiled"] / it["eager"]
            pays = f"{it['seconds'] / (1 - 1 / ratio) / 60:.0f} min" if ratio > 1 else "never"
            print(
                f"{model + ', ' + precision:22} {it['seconds']:8.1f} s {it['eager']:8.0f} t/s {it['compiled']:8.0f} t/s"
                f" {ratio:6.2f}× {pays:>11}",
                flush=True,
            )


def measure(name: str, precision: str, options: Any) -> dict[str, float]:
    """Train compiled and eager in turns, in this process."""
    import torch

    import tinyllm
    from tinyllm.data.batch import Batch
    from tinyllm.programs.builders import build_model, build_optimizer, plain
    from tinyllm.training.compilation import Compiled
    from tinyllm.training.curriculum import Lengths
    from tinyllm.training.objectives.next_token import NextToken
    from tinyllm.training.trainer import clip
    from tinyllm.utils.device import autocast, compute_dtype, deterministic, keep_freed_memory, pick_device

    device = pick_device(options.device)
    cfg = tinyllm.compose(
        f"model={name}", "tokenizer=byte", "trainer.compile.enabled=true", "optimizer=adamw", *options.override
    )
    keep_freed_memory()
    model = build_model(cfg, vocab_size=options.vocabulary, seed=0, device=device, allow=frozenset())
    optimizer, _ = build_optimizer(cfg, model, allow=frozenset())
    parameters = list(model.parameters())
    objective = NextToken(model).train()
    in_autocast = partial(autocast, device, precision)
    length = cfg.model.max_seq_len

    def passes(length: int) -> None:
        ids = torch.randint(options.vocabulary, (options.batch_size, length), device=device)
        with in_autocast():
            loss = objective(Batch(inputs=ids, targets=ids))
        loss.share_of_step(weight=ids.numel(), fraction=1.0).backward()

    def step() -> float:
        started = time.perf_counter()
        passes(length)
        clip(parameters, cfg.trainer.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    settings = plain(cfg.trainer.compile)
    del settings["enabled"]
    compiler = Compiled(
        model=model,
        device=device,
        dtype=compute_dtype(precision),
        lengths=Lengths(seq_len=length),
        any_rank=bool,
        stopping=lambda: False,
        **settings,
    )
    durations: dict[str, list[float]] = {"eager": [], "compiled": []}

    def turn(way: str) -> None:
        step()  # not timed: the caches hold data of the other variant
        until = time.perf_counter() + options.seconds
        while time.perf_counter() < until:
            durations[way].append(step())

    with deterministic(cfg.trainer.deterministic, device):
        facts = compiler.warm_up(passes, tell=lambda text: None)
        assert facts is not None
        for _ in range(options.rounds):
            turn("compiled")
            with compiler.inference_context():
                turn("eager")
    tokens = options.batch_size * length
    return {"seconds": facts["seconds"]} | {way: tokens / statistics.median(them) for way, them in durations.items()}


if __name__ == "__main__":
    main()
