"""Causal attention kernels, forward and backward, on the shapes that set the dispatch thresholds.

    python benchmarks/attention_kernels.py [--isa AVX512_CORE_BF16] [--threads 1]
        [--windows | --unlike | --documents | --head]

Reports median milliseconds of CPU time on one thread (wall time on several), with the kernels interleaved. * marks the
choice of ``tinyllm.nn.attention.kernels``: torch's fused kernel, or our kernel with this many queries per block.

``--windows`` measures sliding windows, folded into the batch for the fused kernel, against the fused kernel without a
window. ``--unlike`` uses values of another size than keys, as latent attention has them; the fused kernel pads them.
``--documents`` measures ``model.document_mask``: rows of several documents, against the same rows as one document.
``--head`` measures head and loss: chunk sizes, and vocabularies that are or are not a multiple of 32. ``--isa`` limits
oneDNN to an older instruction set, to see what a machine without AMX or bf16 would choose.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHAPES = [(12, 4, 64, 32), (64, 4, 128, 32), (16, 6, 256, 64), (8, 4, 512, 64), (1, 12, 1024, 64), (1, 12, 2048, 64)]
WINDOWS = [
    (8, 4, 512, 64, 32),
    (8, 4, 512, 64, 128),
    (1, 12, 2048, 64, 256),
    (1, 12, 4096, 64, 256),
    (1, 4, 8192, 64, 1024),
]
UNLIKE = [(64, 4, 128, 48, 32), (8, 4, 512, 96, 64), (1, 12, 1024, 96, 64)]
BLOCKS = (32, 64, 128, 256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA, e.g. AVX512_CORE, AVX512_CORE_BF16, AVX512_CORE_AMX")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    what = parser.add_mutually_exclusive_group()
    for name in ("windows", "unlike", "documents", "head"):
        what.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if options.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.isa  # read when torch first uses oneDNN

    import torch

    from tinyllm.utils.device import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    if options.head:
        heads_and_losses(clock, options.repeats)
    elif options.documents:
        documents(clock, options.repeats)
    elif options.windows:
        attentions([((*qk, qk[-1]), window) for *qk, window in WINDOWS], clock, options.repeats)
    elif options.unlike:
        attentions([(sizes, 0) for sizes in UNLIKE], clock, options.repeats)
    else:
        attentions([((*qk, qk[-1]), 0) for qk in SHAPES], clock, options.repeats)


def attentions(cases: Sequence[tuple[Sequence[int], int]], clock: Callable[[], float], repeats: int) -> None:
    """Print one line for the case (batch, heads, length, key size, value size) and window (0: none)."""
    import torch

    from tinyllm.nn.attention.block_kernel import BlockConfig, block_attention
    from tinyllm.nn.attention.kernels import block_size

    names = (["no window"] if cases[0][1] else []) + ["sdpa", *map(str, BLOCKS)]
    print(f"{'B, H, T, D, E':36}" + "".join(f"{name:>12}" for name in names))
    for dtype in (torch.bfloat16, torch.float32):
        for (batch, heads, length, size, v_size), window in cases:
            # as the model makes them: rotated queries and keys are contiguous, values are a view of the projection
            q, k = (torch.randn(batch, heads, length, size, dtype=dtype, requires_grad=True) for _ in range(2))
            v = torch.randn(batch, length, heads, v_size, dtype=dtype).transpose(1, 2).requires_grad_()
            upstream = torch.randn(batch, length, heads, v_size, dtype=dtype).transpose(1, 2)

            def run(kernel: Callable[..., torch.Tensor], qkv: tuple[torch.Tensor, ...], g: torch.Tensor) -> None:
                torch.autograd.grad(kernel(*qkv), qkv, g)

            kernels: dict[int, Callable[..., torch.Tensor]] = {-1: partial(fused, window=0)} if window else {}
            kernels[0] = partial(fused, window=window)
            for block in BLOCKS:
                config = BlockConfig(block, window, 0, 0.0, size**-0.5, 0.0)
                kernels[block] = partial(block_attention, config=config)
            calls = [partial(run, kernel, (q, k, v), upstream) for kernel in kernels.values()]
            chosen = block_size("cpu", dtype, length, window=window, same_head_dim=size == v_size)
            columns = zip(kernels, interleaved(calls, clock, repeats), strict=True)
            line = "".join(f"{ms:11.2f}{'*' if n == chosen else ' '}" for n, ms in columns)
            label = f"{str(dtype)[6:]:9}{(batch, heads, length, size, v_size)!s} {f'window {window}' if window else ''}"
            print(f"{label:36}{line}", flush=True)


def fused(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", *, window: int) -> "torch.Tensor":
    """Attention with torch's fused kernel, as ``attend`` calls it."""
    import torch.nn.functional as F

    from tinyllm.nn.attention.window_kernel import folded_attention

    filled = F.pad(v, (0, q.shape[-1] - v.shape[-1])) if q.shape[-1] > v.shape[-1] else v
    if window:
        return folded_attention(q, k, filled, window=window, sinks=0, scale=q.shape[-1] ** -0.5, dropout_p=0.0)
    return F.scaled_dot_product_attention(q, k, filled, is_causal=True)[..., : v.shape[-1]]


def documents(clock: Callable[[], float], repeats: int) -> None:
    """Print the time of attention within documents, and its ratio to attention over the whole rows."""
    import torch

    from tinyllm.nn.attention.kernels import CAUSAL, attend, attend_documents

    batch, heads, length, size = 4, 4, 1024, 64
    torch.manual_seed(0)
    rows = {"8 equal documents": (torch.arange(length) // (length // 8)).repeat(batch, 1)}
    for mean in (20, 80, 200, 600):
        rows[f"random, {mean} on average"] = (torch.rand(batch, length) < 1 / mean).cumsum(1)
    rows["1 document"] = torch.zeros(batch, length, dtype=torch.int64)
    print(f"{'batch 4, 4 heads of 64, T=1024':40}{'whole rows':>12}{'documents':>12}{'ratio':>8}")
    for dtype in (torch.bfloat16, torch.float32):
        for name, doc_ids in rows.items():
            q, k = (torch.randn(batch, heads, length, size, dtype=dtype, requires_grad=True) for _ in range(2))
            v = torch.randn(batch, length, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
            upstream = torch.randn(batch, length, heads, size, dtype=dtype).transpose(1, 2)
            within = {"mask": CAUSAL, "scale": size**-0.5, "dropout_p": 0.0}
            kernels = [partial(attend, dropout_p=0.0), partial(attend_documents, doc_ids_BT=doc_ids, **within)]

            def run(kernel: Callable[..., torch.Tensor], qkv: tuple[torch.Tensor, ...], g: torch.Tensor) -> None:
                torch.autograd.grad(kernel(*qkv), qkv, g)

            whole, own = interleaved([partial(run, kernel, (q, k, v), upstream) for kernel in kernels], clock, repeats)
            print(f"{str(dtype)[6:]:9}{name:31}{whole:12.2f}{own:12.2f}{own / whole:8.2f}", flush=True)


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


def interleaved(calls: Sequence[Callable[[], None]], clock: Callable[[], float], repeats: int) -> list[float]:
    """Median milliseconds of each call, interleaved (A B C A B C), without the first round."""
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
