"""What the reference costs DPO: in a step, and once before the first one.

    python benchmarks/reference_cost.py [--rounds 30] [--pairs 16] [--length 64]

A step is forward and backward pass of DPO on ``model=nano`` in fp32; the same loss without a reference takes its place
in every other one, and the two alternate. The reference of a pair is two numbers, read once before the first step by a
forward pass: the second line has that pass relative to a step on the same pairs, which is what the reading costs in a
run that sees every pair once. Figures are medians over the rounds, followed by the range.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

import tinyllm
from tinyllm.config.build import build
from tinyllm.data.batch import PAIR, Batch
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.builders import plain
from tinyllm.training.objectives.preference import DPO

VOCAB = 267


class WithoutReference(DPO):
    """The same loss of the log-probabilities themselves."""

    needs_reference = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=16, help="of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row; the second half is the answer")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build(plain(tinyllm.compose("model=nano").model), path="model", vocab_size=VOCAB)
    rows = torch.randint(VOCAB, (2 * options.pairs, options.length + 1))
    targets = rows[:, 1:].clone()
    targets[:, : options.length // 2] = IGNORE
    batch = Batch(inputs=rows[:, :-1], targets=targets, extra={PAIR: torch.arange(options.pairs)})
    objectives = {kind: kind(model, beta=0.1, label_smoothing=0.0) for kind in (DPO, WithoutReference)}
    objectives[DPO].reference = torch.zeros(options.pairs, 2)
    variants: dict[str, Callable[[], None]] = {
        "with": partial(step, objectives[DPO], batch),
        "without": partial(step, objectives[WithoutReference], batch),
        "reading": partial(read, objectives[DPO], batch),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds + 3):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if number >= 3:  # the first rounds warm up
                times[name].append(time.process_time() - start)
    show("a step with its reference, over one without", times["with"], times["without"])
    show("reading the reference of its pairs, over a step", times["reading"], times["without"])


def step(objective: DPO, batch: Batch) -> None:
    objective.zero_grad()
    objective(batch).share_of_step(weight=batch.sequences // 2, fraction=1.0).backward()


@torch.no_grad()
def read(objective: DPO, batch: Batch) -> None:
    objective.logprobs(batch)


def show(what: str, one: list[float], other: list[float]) -> None:
    ratios = sorted(a / b for a, b in zip(one, other, strict=True))
    print(f"{what:48} {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
