"""``quantize=int8``: weights rounded to int8 after loading, and what that costs in loss."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from tinyllm.config.targets import Option
from tinyllm.data.loader import eval_tokens
from tinyllm.data.run_data import cached_run_data
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.inference.evaluation import evaluate_sources
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.programs.builders import open_corpus
from tinyllm.programs.saved_model import SavedModel
from tinyllm.utils.device import autocast, compute_dtype
from tinyllm.utils.tensors import first_not_finite

MOST_FLOPS = 3e11
"""Forward-pass FLOPs of one loss on the sample, so that a CPU takes at most a few seconds."""
FEWEST_TOKENS, MOST_TOKENS = 256, 2**14
BATCH_TOKENS = 2**11


class LossSample(NamedTuple):
    """The beginning of the validation split of each source of a run's data, the same tokens each time."""

    splits: Mapping[str, Split]
    shares: Mapping[str, float]
    seq_len: int
    tokens_each: int

    @property
    def tokens(self) -> int:
        """Tokens of all splits together."""
        return sum(eval_tokens(split, max_tokens=self.tokens_each) for split in self.splits.values())

    def loss(self, model: Any, *, device: torch.device, precision: str) -> float:
        """Mean nats per token."""
        metrics = evaluate_sources(
            model,
            self.splits,
            self.shares,
            seq_len=self.seq_len,
            batch_size=max(1, BATCH_TOKENS // self.seq_len),
            max_tokens=self.tokens_each,
            device=device,
            autocast=partial(autocast, device, precision),
        )
        return metrics["val/loss"]


def loss_sample(saved: SavedModel, model: Any, *, allow: frozenset[Option]) -> LossSample | None:
    """A sample of the validation data that a model was trained with; None: not in the token cache, or changed.

    Nothing is prepared for it: that can take minutes.
    """
    if "val" not in saved.data:
        return None
    try:
        data = cached_run_data(*open_corpus(saved.cfg, allow=allow))
    except UserError:  # the files are gone, or changed so that they cannot be read
        return None
    if data is None or data.fingerprints()["val"] != saved.data["val"]:
        return None
    splits = data.splits("val")
    parameters = model.parameter_counts().active
    tokens = min(MOST_TOKENS, max(FEWEST_TOKENS, int(MOST_FLOPS / (2 * parameters))))
    tokens = min(max(1, tokens // len(splits)), *(split.n_tokens - 1 for split in splits.values()))
    seq_len = min(saved.cfg.trainer.seq_len or model.max_seq_len, model.max_seq_len, tokens)
    return LossSample(splits, data.shares(), seq_len, tokens)


def round_to_int8(model: Any, precision: str, *, kernels: DecodeKernels | None = None) -> None:
    """Change a model to int8 weights for inference at a precision; see ``Transformer.for_inference``.

    Raises:
        UserError: a weight is not finite. Rounded, it would look like any other.
    """
    bad_tensor = first_not_finite(model.named_parameters())
    if bad_tensor is not None:
        hint = "they hold NaN or infinity; use an earlier checkpoint"
        raise UserError("the weights are not finite", file=bad_tensor, hint=hint)
    model.for_inference(compute_dtype(precision), int8=True, kernels=kernels)


def loss_line(exact: float, rounded: float, tokens: int) -> str:
    """The sentence that tells what int8 weights cost."""
    change = (rounded - exact) / exact
    return (
        f"int8 weights: val/loss {rounded:.4f} on {tokens:,} held-out tokens, {exact:.4f} with the weights as trained"
        f" ({change:+.2%})"
    )


def unmeasured_line(run: str, saved: SavedModel) -> str:
    """The sentence that tells how to measure what int8 weights cost."""
    data = "" if "val" in saved.data else " dataset=text dataset.path=<file>"
    reason = "the run's data are not in the token cache" if "val" in saved.data else "the model has no data of its own"
    return (
        f"int8 weights: what they cost in loss is unknown here, because {reason}; compare"
        f" python -m tinyllm.evaluate run={run}{data} quantize=int8 with quantize=null"
    )
