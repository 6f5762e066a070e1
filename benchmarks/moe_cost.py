"""Cost of a mixture of experts against a dense block of the same active size.

    python benchmarks/moe_cost.py [--threads 1] [--repeats 15]

One forward and backward pass of one block with 4096 tokens (8 sequences of 512), d_model 256, d_ff 1024. The mixture
routes each token to 2 of 16 experts, each half as wide as the dense layer. Every pass gets different tokens, as in
training, because kernels for group sizes seen before can be faster than for new ones. Reports median milliseconds of
CPU time on one thread (wall time on several), interleaved, and the ratio to dense for the whole block and for the
feed-forward layers alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

KINDS = ("moe=none", "moe=aux_loss", "moe=aux_free")
EXPERTS = ("model.block.moe.n_experts=16", "model.block.moe.n_shared=0", "model.block.moe.n_active=2")
SHAPE = ("model=tiny", "tokenizer=byte", "model.n_layers=1", "model.max_seq_len=512")
BATCH, LENGTH, WARM_UP = 8, 512, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    import torch

    from tinyllm.utils.device import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    inputs = [torch.randn(BATCH, LENGTH, 256) for _ in range(WARM_UP + options.repeats)]
    print(f"{'':22}" + "".join(f"{kind:>16}" for kind in KINDS))
    for ffn in ("ffn=gelu", "ffn=swiglu"):
        blocks = [block(ffn, kind) for kind in KINDS]
        for precision in ("fp32", "bf16"):
            for what, parts in {"block": blocks, "ffn": [one.ffn for one in blocks]}.items():
                ms = interleaved(
                    [partial(step, part, precision, iter(inputs)) for part in parts], clock, options.repeats
                )
                cells = "".join(f"{one:9.1f} ({one / ms[0]:.2f})" for one in ms)
                print(f"{ffn[4:]:8}{precision:6}{what:8}{cells}", flush=True)


def block(*overrides: str) -> Any:
    """A model with a single block."""
    import torch

    import tinyllm
    from tinyllm.programs.builders import build_model

    extra = () if "moe=none" in overrides else EXPERTS
    cfg = tinyllm.compose(*SHAPE, *overrides, *extra)
    model = build_model(cfg, vocab_size=256, seed=0, device=torch.device("cpu"), allow=frozenset())
    return model.layers()[0]


def step(part: Any, precision: str, inputs: Iterator[Any]) -> None:
    """One forward and backward pass with freshly allocated weight gradients, as after ``zero_grad``."""
    import torch

    from tinyllm.utils.device import autocast

    part.zero_grad()
    x_BTC = next(inputs).requires_grad_()
    with autocast(torch.device("cpu"), precision):
        y_BTC, routing = part(x_BTC)
    loss = y_BTC.float().square().mean()
    (loss if routing is None else loss + routing.loss).backward()


def interleaved(calls: list[Callable[[], None]], clock: Callable[[], float], repeats: int) -> list[float]:
    """Median milliseconds of each call, interleaved (A B C A B C), without the first rounds."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(WARM_UP + repeats):
        for call, kept in zip(calls, times, strict=True):
            started = clock()
            call()
            if turn >= WARM_UP:
                kept.append(clock() - started)
    return [1000 * statistics.median(kept) for kept in times]


if __name__ == "__main__":
    main()
