"""Rollouts against the plain decoding loop, in generated tokens per second of one core.

    python benchmarks/rollout_speed.py [--rounds 5] [--prompts 16] [--samples 8] [--new 80]

A model of 0.82M parameters (4 layers, width 128, 4 heads, 267 ids, fp32) with random weights, at temperature 1. Prompts
have 20 to 50 tokens. Answers end at a stop token, which is one of five ids, or after 80 tokens, as those of a policy
that is being trained do. The plain loop is ``inference.decoding``: ``Decoder`` with ``TokenChooser``, on torch's
operations. The variants alternate; figures are medians over the rounds, followed by the range. Run it on an otherwise
idle machine with OMP_NUM_THREADS=1.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

import tinyllm
from tinyllm.config.build import build
from tinyllm.data.prepare import cache_root
from tinyllm.inference.decoding import Decoder, decode
from tinyllm.inference.rollout import rollout
from tinyllm.inference.sampling import Sampling, TokenChooser
from tinyllm.models.transformer import Transformer
from tinyllm.nn.decode_kernels import DecodeKernels, decode_kernels
from tinyllm.programs.builders import plain
from tinyllm.utils.seeds import derive_seed

VOCAB, STOPS = 267, frozenset(range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--new", type=int, default=80, help="most new tokens of an answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = ("model=nano", "model.d_model=128", "model.n_layers=4", "model.n_heads=4", "model.d_ff=512")
    torch.manual_seed(0)
    model = build(plain(tinyllm.compose(*shape, "model.max_seq_len=192").model), path="model", vocab_size=VOCAB).eval()
    assert isinstance(model, Transformer)
    numbers = random.Random(0)
    prompts = [[numbers.randrange(256) for _ in range(numbers.randrange(20, 51))] for _ in range(options.prompts)]
    kernels = decode_kernels(cache_root() / "kernels")
    variants: dict[str, Callable[[int], int]] = {
        "plain loop": lambda seed: plain_loop(model, prompts, options.samples, options.new, seed),
        "rollout, torch's operations": lambda seed: rollouts(model, prompts, options.samples, options.new, seed, None),
        "rollout, C++": lambda seed: rollouts(model, prompts, options.samples, options.new, seed, kernels),
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for seed in range(options.rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            tokens = run(seed)
            if seed:  # the first round warms up
                speeds[name].append(tokens / (time.process_time() - start))
    base = statistics.median(speeds["plain loop"])
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:28} {middle:8,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})  {middle / base:.2f} ×")


def plain_loop(model: Transformer, prompts: list[list[int]], n_samples: int, new: int, seed: int) -> int:
    """Generated tokens of the plain loop."""
    decoder = Decoder(model, prompts, n_samples=n_samples, max_new_tokens=new, kv_cache=True)
    sampling = Sampling(temperature=1.0)
    chooser = TokenChooser(sampling, seed=seed, n_samples=n_samples, n_prompts=len(prompts), vocab_size=VOCAB)
    ended = [False] * (n_samples * len(prompts))
    tokens = 0
    for chosen in decode(decoder, chooser, max_new_tokens=new, ended=ended):
        tokens += len(chosen)
        for row, token in chosen:
            ended[row] = token in STOPS
    return tokens


def rollouts(
    model: Transformer, prompts: list[list[int]], n_samples: int, new: int, seed: int, kernels: DecodeKernels | None
) -> int:
    """Generated tokens of a rollout."""
    seeds = [[derive_seed(seed, "rollout", prompt, n) for n in range(n_samples)] for prompt in range(len(prompts))]
    answers = rollout(
        model, prompts, seeds=seeds, max_new_tokens=new, stop_ids=STOPS, vocab_size=VOCAB, kernels=kernels
    )
    return sum(answer.tokens for answer in answers)


if __name__ == "__main__":
    main()
