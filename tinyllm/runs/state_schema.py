"""Checks the state of a checkpoint against the types and ranges that training writes.

A checkpoint may be untrusted: a wrong field is refused before any of the state is used.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.runs.checkpoint import Checkpoint
from tinyllm.runs.checkpoint_parts import STATE

Rule = tuple[str, Callable[[Any], bool]]
"""The requirement in words, and the test for it."""

_MERSENNE_WORDS = 624  # the state of MT19937, the generator of Python and NumPy


def read_checked(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of a checkpoint, with type and range of every field checked.

    Whether the tensors fit a model is checked when they are loaded.

    Raises:
        UserError: a field is missing or wrong; the message names file, field and what it must be.
    """
    state = checkpoint.state()
    file = checkpoint.path / STATE if checkpoint.writers == 1 else checkpoint.path
    for name, (wanted, holds) in rules(checkpoint.step).items():
        if name not in state and name not in OPTIONAL:
            raise UserError("the checkpoint's state is incomplete", file=file, hint=f"{name} is missing")
        if name in state and not holds(state[name]):
            raise damaged(file, f"{name} is {_shown(state[name])}", wanted)
    if (state["best_loss"] is None) != (state["best_step"] is None):
        raise damaged(
            file,
            f"best_step is {state['best_step']} with best_loss {state['best_loss']}",
            "both a number, or both None",
        )
    return state


def damaged(file: object, what: str, wanted: str) -> UserError:
    """The error for a wrong field."""
    return UserError("the checkpoint's state is damaged", file=file, hint=f"{what}; it must be {wanted}")


OPTIONAL = ("average", "loggers", "owed", "reference")
"""Fields that older checkpoints, or those of other objectives, lack."""


def rules(step: int) -> dict[str, Rule]:
    """The rule for each field of the state after ``step`` steps."""
    count = ("a whole number, at least 0", is_count)
    return {
        "step": (f"{step}, as the manifest says", lambda value: is_count(value) and value == step),
        "tokens": count,
        "sequences": count,
        "flops": count,
        "seconds": ("a number, at least 0", lambda value: is_number(value) and value >= 0),
        "best_loss": ("a number or None", lambda value: value is None or is_number(value)),
        "best_step": (
            f"a step up to {step} or None",
            lambda value: value is None or (is_count(value) and value <= step),
        ),
        "skipped": (f"a number of steps up to {step}", lambda value: is_count(value) and value <= step),
        "window": ("the sum of the losses and the number of steps", _is_window),
        "optimizer": ("tensors and numbers by parameter and name", _is_optimizer),
        "scaler": ("the state of the loss scaler, or {}", _is_scaler),
        "average": ("a tensor for each parameter and the number of updates, or {}", _is_average),
        "rng": ("the state of each random generator", _is_rng),
        "owed": ("None or numbers by name", _is_owed),
        "reference": ("two fp32 numbers for each pair", _is_reference),
        "loggers": ("strings and numbers by logger and name", _is_loggers),
    }


def is_count(value: Any) -> bool:
    """A whole number, at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_plain(value: Any, *, floating: bool = True) -> bool:
    """A dense real tensor on the CPU whose storage is as large as its shape says.

    A crafted file can hold a tensor with a huge shape over a tiny storage, by strides of 0.
    """
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_complex()
        and not value.is_quantized
        and (value.is_floating_point() or not floating)
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _has(value: Any, rules: Mapping[str, Callable[[Any], bool]]) -> bool:
    """A dictionary with exactly the keys of ``rules``, each value passing its test."""
    return (
        _is_named(value) and value.keys() == rules.keys() and all(holds(value[name]) for name, holds in rules.items())
    )


def _is_window(value: Any) -> bool:
    return _has(value, {"loss": is_number, "steps": lambda steps: is_number(steps) and steps >= 0})


def _is_optimizer(value: Any) -> bool:
    """Tensors and numbers by parameter; integer tensors too, for 8-bit moments."""
    return _is_named(value) and all(
        _is_named(entries)
        and all(entry is None or is_number(entry) or is_plain(entry, floating=False) for entry in entries.values())
        for entries in value.values()
    )


def _is_scaler(value: Any) -> bool:
    above = {
        name: lambda number: is_number(number) and number > 0 for name in ("scale", "growth_factor", "backoff_factor")
    }
    counts = {"growth_interval": lambda count: is_count(count) and count > 0, "_growth_tracker": is_count}
    return value == {} or _has(value, above | counts)


def _is_average(value: Any) -> bool:
    return value == {} or _has(
        value, {"shadow": lambda shadow: _is_named(shadow) and all(map(is_plain, shadow.values())), "updates": is_count}
    )


def _is_rng(value: Any) -> bool:
    """A list with one entry per rank; older checkpoints hold the entry of rank 0 alone."""
    ranks = value if isinstance(value, list) else [value]
    return bool(ranks) and all(
        _has(rank, {"torch": _is_generator, "cuda": _is_cuda, "numpy": _is_numpy, "python": _is_python})
        for rank in ranks
    )


def _is_generator(value: Any) -> bool:
    return is_plain(value, floating=False) and value.dtype == torch.uint8 and value.shape == torch.get_rng_state().shape


def _is_cuda(value: Any) -> bool:
    return isinstance(value, list) and all(
        is_plain(state, floating=False) and state.dtype == torch.uint8 and state.ndim == 1 for state in value
    )


def _is_numpy(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 5 or value[0] != "MT19937":
        return False
    _, keys, position, has_gauss, gauss = value
    return (
        is_plain(keys, floating=False)
        and keys.dtype == torch.int64
        and keys.shape == (_MERSENNE_WORDS,)
        and bool(((keys >= 0) & (keys < 2**32)).all())
        and is_count(position)
        and position <= _MERSENNE_WORDS
        and has_gauss in (0, 1)
        and is_number(gauss)
    )


def _is_python(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3 or value[0] != 3 or not isinstance(value[1], list):
        return False
    words, gauss = value[1], value[2]
    return (
        len(words) == _MERSENNE_WORDS + 1
        and all(is_count(word) and word < 2**32 for word in words)
        and words[-1] <= _MERSENNE_WORDS
        and (gauss is None or is_number(gauss))
    )


def _is_reference(value: Any) -> bool:
    """Log-probabilities; NaN for a pair that was not read."""
    return is_plain(value) and value.dtype == torch.float32 and value.ndim == 2 and value.shape[1] == 2


def _is_owed(value: Any) -> bool:
    """A metrics record that is not written yet. It may hold NaN, such as the loss of a skipped step."""
    return value is None or (_is_named(value) and all(type(number) in (int, float) for number in value.values()))


def _is_loggers(value: Any) -> bool:
    return _is_named(value) and all(
        _is_named(entries) and all(isinstance(entry, str) or is_number(entry) for entry in entries.values())
        for entries in value.values()
    )


def _shown(value: Any) -> str:
    """A short description of any value."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:40]
