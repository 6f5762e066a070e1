"""The kernels of causal attention, forward and backward, on the shapes that the thresholds are set from.

    python benchmarks/attention_kernels.py [--isa AVX512_CORE_BF16] [--threads 1] [--head]

Milliseconds of CPU time of one thread (wall time with more threads), the median of interleaved runs; * marks what
``tinyllm.nn.attention.attend`` chooses. ``--isa`` limits oneDNN to an older instruction set, to see how a machine
without AMX or without bf16 would choose. ``--head`` measures head and loss instead: chunk sizes, and vocabularies that
are and are not a multiple of 32.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

SHAPES = [(12, 4, 64, 32), (64, 4, 128, 32), (16, 6, 256, 64), (8, 4, 512, 64), (1, 12, 1024, 64), (1, 12, 2048, 64)]
BLOCKS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA, e.g. AVX512_CORE, AVX512_CORE_BF16, AVX512_CORE_AMX")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--head", action="store_true")
    options = parser.parse_args()
    if options.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.isa  # read when torch first uses oneDNN

    import torch

    from tinyllm.training.allocator import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    (heads_and_losses if options.head else attentions)(clock, options.repeats)


def attentions(clock: Callable[[], float], repeats: int) -> None:
    import torch
    import torch.nn.functional as F

    from tinyllm.nn.attention.attend import n_blocks
    from tinyllm.nn.attention.blocks import block_attention

    kernels = {0: partial(F.scaled_dot_product_attention, is_causal=True)}
    kernels |= {n: partial(block_attention, n_blocks=n, dropout_p=0.0) for n in BLOCKS}
    print(f"{'B, H, T, D':20}" + "".join(f"{'sdpa' if not n else f'{n} blocks':>12}" for n in kernels))
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            batch, heads, length, size = shape
            # as the model makes them: rotated queries and keys are contiguous, values are a view of the projection
            q, k = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
            v = torch.randn(batch, length, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
            upstream = torch.randn(batch, length, heads, size, dtype=dtype).transpose(1, 2)

            def run(kernel: Callable[..., torch.Tensor], qkv: tuple[torch.Tensor, ...], g: torch.Tensor) -> None:
                torch.autograd.grad(kernel(*qkv), qkv, g)

            calls = [partial(run, kernel, (q, k, v), upstream) for kernel in kernels.values()]
            chosen = n_blocks("cpu", dtype, length)
            columns = zip(kernels, interleaved(calls, clock, repeats), strict=True)
            line = "".join(f"{ms:11.2f}{'*' if n == chosen else ' '}" for n, ms in columns)
            print(f"{str(dtype)[6:]:9}{shape!s:18}{line}", flush=True)


def heads_and_losses(clock: Callable[[], float], repeats: int) -> None:
    import torch

    from tinyllm.nn.loss import linear_cross_entropy

    chunks = (128, 256, 512, 1024, 2048, None)
    print(f"{'tokens, width, words':28}" + "".join(f"{'auto' if c is None else c:>10}" for c in chunks))
    for tokens, width, words in [(8192, 128, 65), (4096, 256, 32000), (4096, 256, 32001), (1024, 768, 50257)]:
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = (torch.randn(words, width) * 0.02).requires_grad_()
        targets = torch.randint(words, (tokens,))

        def run(chunk: int | None, h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = linear_cross_entropy(h, w, t, chunk_tokens=chunk)
            torch.autograd.grad(loss, (h, w))

        calls = [partial(run, chunk, hidden, weight, targets) for chunk in chunks]
        figures = interleaved(calls, clock, max(3, repeats // 2))
        print(f"{(tokens, width, words)!s:28}" + "".join(f"{ms:10.1f}" for ms in figures), flush=True)


def interleaved(calls: list[Callable[[], None]], clock: Callable[[], float], repeats: int) -> list[float]:
    """Median milliseconds of each call, A B C A B C, the first round not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, kept in zip(calls, times, strict=True):
            started = clock()
            call()
            if turn:
                kept.append(clock() - started)
    return [1000 * statistics.median(kept) for kept in times]


if __name__ == "__main__":
    main()
