"""Evaluation of a model on a split: the one function that computes every val/loss."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.data.loader import eval_batches, eval_bytes
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.nn.loss import linear_cross_entropy, perplexity
from tinyllm.utils.stop_signal import Interrupted, Stopping
from tinyllm.utils.tensors import first_not_finite


def evaluate(
    model: LanguageModel,
    split: Split,
    *,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None = None,
    stride: int | None = None,
    device: torch.device | str,
    autocast: Autocast = nullcontext,
    name: str = "val",
    progress: Callable[[int], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[list[float]], list[list[float]]] = lambda values: [values],
    stopping: Stopping = lambda: False,
) -> dict[str, float]:
    """Cross-entropy of a split, averaged over its tokens.

    The split is read in windows of ``seq_len`` tokens that predict every token but the first exactly once; the last
    window may be shorter. With ``stride`` < ``seq_len`` the windows overlap and, except in the first, only the last
    ``stride`` tokens of each count, so that these have a context of at least ``seq_len − stride`` tokens. No random
    stream is touched and the model's mode is restored, so an evaluation does not change training. A model with
    ``document_mask`` sees no further back than the beginning of the token's document. Of conversations, what the
    assistant says is predicted.

    Args:
        max_tokens: evaluate only the beginning of the split; None: all of it.
        autocast: returns the context manager in which the model runs.
        name: prefix of the metrics.
        progress: called with the number of tokens predicted so far.
        rank, world_size: the batches are divided over this many processes; the result is that of one process.
        gather: all-gathers a list of values, by rank.
        stopping: checked before each batch of this process.

    Returns:
        ``val/loss`` (mean nats per token), ``val/ppl`` (its exponential; inf beyond the largest float) and, if the data
        are text, ``val/bpb`` (nats / (ln 2 · UTF-8 bytes of the predicted tokens)).

    Raises:
        UserError: the split is too short to predict anything, ``stride`` is not within 1 … ``seq_len``, or the weights
            are not finite.
        Interrupted: ``stopping`` returned true.
    """
    was_training = model.training
    model.train(False)
    nats: list[Tensor | float] = []
    tokens = number = 0
    try:
        for number, batch in enumerate(
            eval_batches(split, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens, stride=stride), start=1
        ):
            if (number - 1) % world_size == 0 and stopping():
                raise Interrupted
            tokens += batch.counted
            if (number - 1) % world_size == rank:
                nats.append(_off_heap(_nats(model, _moved(batch, device), autocast)))
            if progress is not None:
                progress(tokens)
        if len(nats) * world_size < number:  # a sharded model needs all ranks in every pass: repeat the last batch
            nats.append(_off_heap(_nats(model, _moved(batch, device), autocast)))
    finally:
        model.train(was_training)
    if not tokens:
        size = "1 token" if split.n_tokens == 1 else f"{split.n_tokens:,} tokens"
        raise UserError(f"the {split.name} split has {size}", hint="at least 2 are needed to predict one")
    # One transfer at the end: reading every sum at once would stall the device.
    rows = gather(torch.stack([torch.as_tensor(batch_nats) for batch_nats in nats]).tolist())
    in_order = [value for values in zip(*rows, strict=True) for value in values][:number]
    total = torch.tensor(in_order, dtype=torch.float64).sum().item()
    loss = total / tokens
    if not math.isfinite(loss):
        _check_weights(model, gather)
    metrics = {f"{name}/loss": loss, f"{name}/ppl": perplexity(loss)}
    n_bytes = eval_bytes(split, seq_len=seq_len, max_tokens=max_tokens)
    if n_bytes:
        metrics[f"{name}/bpb"] = total / (math.log(2) * n_bytes)
    return metrics


def evaluate_sources(
    model: LanguageModel,
    splits: Mapping[str, Split],
    shares: Mapping[str, float],
    *,
    name: str = "val",
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> dict[str, float]:
    """:func:`evaluate` on each source of a mixture, and the mean over the sources.

    Args:
        splits: by source; a data set that is no mixture has one source, named "", and gives what ``evaluate`` does.
        shares: weight of each source in the mean.
        progress: called with the number of tokens predicted so far, over all sources.
        settings: of ``evaluate``, for each source.

    Returns:
        ``val/<source>/loss``, ``ppl`` and ``bpb``, and the weighted means ``val/loss`` and, if all sources are text,
        ``val/bpb``; ``val/ppl`` is the exponential of ``val/loss``.
    """
    if list(splits) == [""]:
        return evaluate(model, splits[""], name=name, progress=progress, **settings)
    metrics: dict[str, float] = {}
    counter = _Counter(progress)
    for source, split in splits.items():
        metrics |= evaluate(model, split, name=f"{name}/{source}", progress=counter.of_source(), **settings)
    means = {}
    for metric in ("loss", "bpb"):
        keys = {source: f"{name}/{source}/{metric}" for source in splits}
        if all(key in metrics for key in keys.values()):
            means[f"{name}/{metric}"] = math.fsum(shares[source] * metrics[key] for source, key in keys.items())
    loss = means[f"{name}/loss"]
    return {f"{name}/loss": loss, f"{name}/ppl": perplexity(loss)} | means | metrics


class _Counter:
    """Counts tokens over several sources."""

    def __init__(self, report: Callable[[int], None] | None) -> None:
        self._report, self._total = report, 0

    def of_source(self) -> Callable[[int], None]:
        """Receives the tokens of the next source so far."""
        before = self._total

        def count(done: int) -> None:
            self._total = before + done
            if self._report is not None:
                self._report(self._total)

        return count


def _check_weights(model: LanguageModel, gather: Callable[[list[float]], list[list[float]]]) -> None:
    """Refuse weights with NaN or infinity, whose loss is meaningless; every process raises if one has such weights.

    Raises:
        UserError: a weight is not finite.
    """
    bad_tensor = first_not_finite(model.named_parameters())
    if any(row[0] for row in gather([float(bad_tensor is not None)])):
        hint = "they hold NaN or infinity; use an earlier checkpoint, or train again with a lower optimizer.lr"
        raise UserError("the weights are not finite", file=bad_tensor, hint=hint)


def _moved(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device; to a GPU from pinned memory, so that the host prepares the next one meanwhile."""
    return (batch.pin_memory() if torch.device(device).type == "cuda" else batch).to(device)


def _off_heap(batch_nats: Tensor) -> Tensor | float:
    """The sum of a batch as a float if it is on the CPU; on a GPU, where ``item`` would wait, as it is.

    A small tensor would lie behind the batch's logits in the heap. glibc before 2.38 does not reuse the space of
    aligned blocks freed before it (its bug 14581), so the process would grow with every batch.
    """
    return batch_nats.item() if batch_nats.device.type == "cpu" else batch_nats


@torch.no_grad()  # not inference_mode: sharded weights gathered in it for the first time could not be trained later
def _nats(model: LanguageModel, batch: Batch, autocast: Autocast) -> Tensor:
    """Cross-entropy summed over the batch's targets, a scalar on its device."""
    with autocast():
        hidden_ND = model(batch.inputs, doc_ids=batch.doc_ids).flatten(0, 1)
        return linear_cross_entropy(hidden_ND, model.head_weight, batch.targets.flatten(), chunk_tokens=None)
