"""Where a training step of ``train_speed.py`` goes: the time of every operation, and the products at their best.

    python benchmarks/train_profile.py a|b|c [--steps 4] [--torch]

Times are those of the main thread under torch's profiler, per step. The second table multiplies matrices of the shapes
of the step alone, over and over, so that they are in the cache: the time that the products would take at these rates is
a bound for the step. ``--torch`` trains without our kernels. Needs an otherwise idle machine.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from train_speed import ROWS, tinyllm_step

PRODUCTS = {"aten::mm", "aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::addmm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--torch", action="store_true")
    options = parser.parse_args()
    shape = ROWS[options.row][1]
    torch.manual_seed(0)
    size = (shape["batch"], shape["context"])
    inputs, targets = (torch.randint(shape["vocab"], size) for _ in range(2))
    _, step = tinyllm_step("tinyllm", options.row, kernels=not options.torch)
    durations = [seconds(lambda: step(inputs, targets)) for _ in range(2 + options.steps)][2:]
    print(f"fastest step {min(durations) * 1e3:.0f} ms, slowest {max(durations) * 1e3:.0f}")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(options.steps):
            step(inputs, targets)
    averages = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    for event in sorted(averages, key=lambda event: -event.self_cpu_time_total)[:16]:
        its = event.self_cpu_time_total
        print(f"{its / options.steps / 1e3:8.1f} ms {its / total:6.1%} {event.count // options.steps:5d}× {event.key}")
    products = sum(event.self_cpu_time_total for event in averages if event.key in PRODUCTS) / options.steps / 1e3
    print(f"torch's products: {products:.0f} ms\n")
    best_products(shape)


def best_products(shape: dict[str, int]) -> None:
    """Print the rate of every product of a step alone, and the time of all of them at these rates."""
    rows, width = shape["batch"] * shape["context"], shape["width"]
    layers = shape["layers"]
    sizes = {"qkv": (width, 3 * width, layers), "out": (width, width, layers), "up": (width, 4 * width, layers)}
    sizes |= {"down": (4 * width, width, layers), "head": (width, -(-shape["vocab"] // 32) * 32, 1)}
    total = 0.0
    for name, (n_in, n_out, count) in sizes.items():
        n = min(rows, 1024) if name == "head" and n_out > 10_000 else rows  # a chunk
        x, weight, grad = (torch.randn(*size).bfloat16() for size in ((n, n_in), (n_out, n_in), (n, n_out)))
        for kind, product in ways(x, weight, grad).items():
            best = min(seconds(product) for _ in range(8))
            total += best * count * rows / n
            print(f"{name:5} {kind:9} {n} × {n_in} × {n_out}: {2 * n * n_in * n_out / best / 1e9:4.0f} GFLOP/s")
    print(f"all products of linear layers and head at these rates: {total * 1e3:.0f} ms")


def ways(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The three products of a linear layer in training."""
    return {"forward": lambda: x @ weight.t(), "d input": lambda: grad @ weight, "d weight": lambda: grad.t() @ x}


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
