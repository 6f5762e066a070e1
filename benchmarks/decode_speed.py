"""Decoding speed against transformers' ``generate`` and the memory bandwidth, and cache memory.

    python benchmarks/decode_speed.py [--rounds 5] [--new 128] [--prompt 32] [--rows one batch cache] [--products]

The gpt2 shape (12 layers, width 768, 12 heads, vocabulary 50257, learned positions, LayerNorm, biases, GELU, tied) with
random weights, greedy decoding, in one process. tinyllm runs with its C++ kernels, with them and int8 weights, and with
torch's operations alone. Variants alternate (A B C A B C); figures are medians over the rounds, followed by the range.
The time per token is the time of a ``generate`` call minus that of a call with one new token, divided by the remaining
tokens. It includes detokenizing, stopping and sampling on both sides. transformers runs with its dynamic and its static
cache; "best" is the faster one. The bandwidth is the best of a sum, a copy (bytes read plus written) and a
matrix-vector product over 1 GiB, measured in every round. "Of bandwidth" is the bytes of weights read per token (of
int8 weights a byte each), divided by the bandwidth and by the time per token. ``--products`` times the linear layers
alone, in each storage format. Needs transformers and an otherwise idle machine; ``cpu`` shows how many cores a variant
used.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

VOCAB, WIDTH, LAYERS = 50257, 768, 12
SHAPES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * LAYERS + [(VOCAB, WIDTH)]
"""Shapes of the matrices that a token passes through."""
OURS = ("attn=mha", "pos=learned", "norm=layernorm", "model.bias=true", "ffn=gelu", "tokenizer=byte")
Run = Callable[[int], Any]
"""Generates this many tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128, help="new tokens")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--rows", nargs="+", default=["one", "batch", "cache"], choices=["one", "batch", "cache"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--products", action="store_true", help="the linear layers alone")
    options = parser.parse_args()
    if options.products:
        products(options.rounds)
        return
    lengths = {"one": [options.prompt], "batch": [options.prompt // 2 + 12 * i for i in range(8)]}
    for row in options.rows:
        if row == "cache":
            caches()
            continue
        for precision in options.precisions:
            compare(row, lengths[row], precision, rounds=options.rounds, new=options.new)


def compare(row: str, lengths: list[int], precision: str, *, rounds: int, new: int) -> None:
    """Print the table for prompts of these lengths at one precision."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCAB, (n,), generator=numbers).tolist() for n in lengths]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    runs = {
        "tinyllm": tinyllm_run(prompts, precision, dtype),
        "tinyllm int8": tinyllm_run(prompts, precision, dtype, int8=True),
        "tinyllm, torch's ops": tinyllm_run(prompts, precision, dtype, kernels=False),
    }
    runs |= {f"transformers {cache}": transformers_run(prompts, dtype, cache) for cache in ("dynamic", "static")}
    read = bandwidth_run()
    for run in runs.values():
        run(2)
    bandwidths: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in runs}
    cores: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        bandwidths.append(read())
        for name, run in runs.items():
            few, many = timed(run, 1), timed(run, new)
            times[name].append((many[0] - few[0]) / (new - 1))
            cores[name].append((many[1] - few[1]) / (many[0] - few[0]))
    best = min(statistics.median(of_one) for name, of_one in times.items() if name.startswith("transformers"))
    bandwidth, weights = statistics.median(bandwidths), sum(o * i for o, i in SHAPES) * dtype.itemsize
    spread = f"{min(bandwidths) / 1e9:.1f}–{max(bandwidths) / 1e9:.1f}"
    print(f"\n{row}: {len(prompts)} prompt(s) of {lengths} tokens, {new} new, {precision}")
    print(f"weights {weights / 1e6:.0f} MB, bandwidth {bandwidth / 1e9:.1f} GB/s ({spread})")
    print(f"{'':22} {'ms/step':>8} {'range':>14} {'tokens/s':>9} {'tinyllm is':>11} {'of bandwidth':>13} {'cpu':>5}")
    ours = statistics.median(times["tinyllm"])
    for name, of_one in times.items():
        middle = statistics.median(of_one)
        read_bytes = weights / dtype.itemsize if name == "tinyllm int8" else weights
        span = f"{min(of_one) * 1e3:.1f}–{max(of_one) * 1e3:.1f}"
        mark = " (best)" if middle == best else ""
        print(
            f"{name:22} {middle * 1e3:8.2f} {span:>14} {len(prompts) / middle:9.1f} {middle / ours:10.2f}×"
            f" {read_bytes / bandwidth / middle:12.0%} {statistics.median(cores[name]):5.2f}{mark}",
            flush=True,
        )


def timed(run: Run, n: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(n)
    return time.perf_counter() - wall, time.process_time() - cpu


def tinyllm_run(
    prompts: list[list[int]], precision: str, dtype: Any, *, int8: bool = False, kernels: bool = True
) -> Run:
    import torch

    import tinyllm
    from tinyllm.data.prepare import cache_root
    from tinyllm.inference.generator import generate_batch
    from tinyllm.inference.sampling import Sampling
    from tinyllm.nn.decode_kernels import decode_kernels
    from tinyllm.programs.builders import build_model
    from tinyllm.tokenizers.ids import IdsTokenizer
    from tinyllm.utils.device import autocast

    cfg = tinyllm.compose("model=gpt2", *OURS)
    model = build_model(cfg, vocab_size=VOCAB, seed=0, device=torch.device("cpu"), allow=frozenset()).eval()
    model.for_inference(dtype, int8=int8, kernels=decode_kernels(cache_root() / "kernels") if kernels else None)
    texts = [" ".join(map(str, prompt)) for prompt in prompts]

    def run(n: int) -> None:
        generate_batch(
            model,
            IdsTokenizer(vocab_size=VOCAB),
            texts,
            max_new_tokens=n,
            sampling=Sampling(temperature=0),
            autocast=partial(autocast, torch.device("cpu"), precision),
        )

    return run


def transformers_run(prompts: list[list[int]], dtype: Any, cache: str) -> Run:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB)).to(dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    chosen = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}

    def run(n: int) -> None:
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, **chosen)
        assert out.shape[1] == longest + n

    return run


def bandwidth_run() -> Callable[[], float]:
    """Return a function that measures the read bandwidth of the CPU in bytes per second."""
    import torch

    source, target = torch.ones(2**28), torch.empty(2**27)
    matrix, vector = source.view(-1, 2**16), torch.ones(1, 2**12)
    ways: list[tuple[Callable[[], Any], int]] = [
        (source.sum, source.nbytes),
        (lambda: target.copy_(source[: 2**27]), 2 * target.nbytes),
        (lambda: vector @ matrix, source.nbytes),
    ]

    def measure() -> float:
        best = 0.0
        for way, n_bytes in ways * 3:
            started = time.perf_counter()
            way()
            best = max(best, n_bytes / (time.perf_counter() - started))
        return best

    return measure


def products(rounds: int) -> None:
    """Print the time of all linear layers for few rows, in each storage format."""
    import torch
    import torch.nn.functional as F

    from tinyllm.data.prepare import cache_root
    from tinyllm.nn.decode_kernels import decode_kernels
    from tinyllm.nn.inference_linear import InferenceForm, InferenceLinear, PackedLinear, has_packed, reorder_

    kernels = decode_kernels(cache_root() / "kernels")

    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.randn(shape).to(dtype) for shape in SHAPES]
        forms: dict[str, list[Callable[[Any], Any]]] = {"as trained": [partial(F.linear, weight=w) for w in weights]}
        if dtype == torch.float32:
            by_column = [w.clone() for w in weights]
            for weight in by_column:
                reorder_(weight)
            forms["by column"] = [partial(F.linear, weight=w) for w in by_column]
        if has_packed(torch.device("cpu"), dtype):
            forms["packed"] = [PackedLinear(w, None, dtype=dtype) for w in weights]
        for int8 in (False, True):
            form = InferenceForm(dtype=dtype, int8=int8, kernels=kernels)
            forms["our kernels" + ", int8" * int8] = [InferenceLinear(w, None, form) for w in weights]
        for n in (1, 8, 16, 32):
            inputs = [torch.randn(n, shape[1]).to(dtype) for shape in SHAPES]
            times: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(rounds * 5):
                for name, layers in forms.items():
                    started = time.perf_counter()
                    with torch.inference_mode():
                        for layer, x in zip(layers, inputs, strict=True):
                            layer(x)
                    times[name].append(time.perf_counter() - started)
            for name, of_one in times.items():
                middle = statistics.median(of_one[1:])
                print(f"{dtype}, {n} row(s), {name}: {middle * 1e3:.1f} ms", flush=True)


def caches() -> None:
    """Print the cache bytes per token, measured on live caches."""
    import torch

    import tinyllm
    from tinyllm.programs.builders import build_model

    print("\ncache bytes per token of the gpt2 shape, fp32, from the buffers of a live cache of 64 tokens")
    for attn in ("mha", "gqa", "mqa", "mla"):
        cfg = tinyllm.compose("model=gpt2", f"attn={attn}", "tokenizer=byte")
        model = build_model(cfg, vocab_size=256, seed=0, device=torch.device("cpu"), allow=frozenset()).eval()
        cache = model.make_cache(1, 64)
        with torch.no_grad():
            model(torch.zeros(1, 64, dtype=torch.long), cache=cache)
        said = model.cache_bytes_per_token(torch.float32)
        print(f"{attn}: {cache.nbytes() / cache.length:,.0f} (accounting: {said:,})", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
