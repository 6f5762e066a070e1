"""What a run costs, as text."""

from tinyllm.studio.report import Figures
from tinyllm.studio.speed import Expectation
from tinyllm.utils.text import duration, quantity, short

UNKNOWN = "–"
ROWS = (
    ("Parameters", "weights of the model"),
    ("FLOPs per token", "of training: forward and backward pass"),
    ("Memory", "weights, gradients, optimizer state and activations, per rank"),
    ("Cache", "keys and values of a whole context, in bf16"),
    ("Tokens per step", "over all ranks and micro-steps"),
    ("Steps", "the horizon"),
    ("Tokens", "of all steps"),
    ("Tokens per parameter", "about 20 is best for a given compute (Hoffmann et al. 2022)"),
    ("Epochs", "passes over the training split"),
    ("Compute", "FLOPs of the whole run"),
    (
        "Time here",
        "from earlier runs here of like size, with the same objective, precision and device",
    ),
)
"""Name and explanation of each figure."""


def texts_of(figures: Figures | None, expectation: Expectation | None) -> dict[str, str]:
    """Every figure as text."""
    if figures is None:
        return dict.fromkeys(dict(ROWS), UNKNOWN)
    active = f" ({short(figures.active_parameters)} active)"
    cache = figures.cache_bytes_per_token * figures.context
    tokens, steps, epochs, flops = figures.tokens, figures.steps, figures.epochs, figures.flops
    return {
        "Parameters": short(figures.parameters) + active * (figures.active_parameters != figures.parameters),
        "FLOPs per token": short(figures.flops_per_token),
        "Memory": quantity(figures.memory_bytes, "B"),
        "Cache": f"{quantity(cache, 'B')} for {figures.context:,} tokens",
        "Tokens per step": f"{figures.tokens_per_step:,}",
        "Steps": UNKNOWN if steps is None else f"{steps:,}",
        "Tokens": UNKNOWN if tokens is None else short(tokens),
        "Tokens per parameter": UNKNOWN if tokens is None else f"{tokens / figures.parameters:.3g}",
        "Epochs": "known once the data is prepared" if epochs is None else f"{epochs:.3g}",
        "Compute": UNKNOWN if flops is None else quantity(flops, "FLOP") if flops < 1e18 else f"{flops:.3g} FLOP",
        "Time here": "no earlier run like this" if expectation is None else f"about {duration(expectation.seconds)}",
    }


def source_of(expectation: Expectation) -> str:
    """From which runs the duration is concluded."""
    first, *others = expectation.runs
    more = f" and {len(others)} more" if others else ""
    work = first.work
    ranks = f" in {work.ranks} processes" if work.ranks > 1 else ""
    how = f"{work.objective} in {work.precision} on {work.device}{ranks}"
    return f"time: training alone, at the speed of {first.path.name}{more} ({how})"
