"""How well a model predicts a split: the one function behind every val/loss."""

import math
from collections.abc import Callable
from contextlib import nullcontext

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
    """Plain cross-entropy of the split, every token weighing the same.

    The split is read in windows of ``seq_len`` tokens that predict every token but the first exactly once,
    the last window being shorter if need be. With ``stride`` < ``seq_len`` the windows overlap and only the
    last ``stride`` tokens of each count (of the first window all), so every token has at least ``seq_len −
    stride`` tokens before it. Nothing is drawn from a random stream and the model's mode is restored, so
    training does not notice.

    Args:
        max_tokens: only the beginning of the split; None: all of it.
        autocast: makes the context in which the model runs.
        name: what the keys begin with.
        progress: told how many tokens are predicted so far.
        rank, world_size: of processes that deal the batches out among themselves; the result is that of one.
        gather: of this process's values those of all, in the order of their ranks.
        stopping: asked before each batch of this process.

    Returns:
        ``val/loss`` (mean nats per token), ``val/ppl`` (its exponential; inf where no number is large enough) and,
        where the split knows the bytes of its tokens, ``val/bpb`` (nats / (ln 2 · UTF-8 bytes of predicted tokens)).

    Raises:
        UserError: the split is too short to predict anything, the stride would leave tokens out, or the weights are
            not finite.
        Interrupted: ``stopping`` said so.
    """
    if stride is not None and not 1 <= stride <= seq_len:
        raise UserError("out of range", key="stride", value=stride, hint=f"give 1 to seq_len ({seq_len})")
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
                nats.append(_kept(_nats(model, batch.to(device), autocast)))
            if progress is not None:
                progress(tokens)
        if len(nats) * world_size < number:  # a model in parts needs all ranks in every pass
            nats.append(_kept(_nats(model, batch.to(device), autocast)))
    finally:
        model.train(was_training)
    if not tokens:
        raise UserError(
            f"the {split.name} split has {split.n_tokens} tokens", hint="at least 2 are needed to predict one"
        )
    # One transfer at the end: reading each batch's sum at once would make the device wait for it.
    rows = gather(torch.stack([torch.as_tensor(one) for one in nats]).tolist())
    in_order = [value for values in zip(*rows, strict=True) for value in values][:number]
    total = torch.tensor(in_order, dtype=torch.float64).sum().item()
    loss = total / tokens
    if not math.isfinite(loss):
        _check_weights(model, gather)
    metrics = {f"{name}/loss": loss, f"{name}/ppl": perplexity(loss)}
    n_bytes = eval_bytes(split, max_tokens=max_tokens)
    if n_bytes:
        metrics[f"{name}/bpb"] = total / (math.log(2) * n_bytes)
    return metrics


def _check_weights(model: LanguageModel, gather: Callable[[list[float]], list[list[float]]]) -> None:
    """Refuse weights with NaN or infinity, on all processes if one of them has some: no figure of them means anything.

    Raises:
        UserError: there are some.
    """
    found = first_not_finite(model.named_parameters())
    if any(row[0] for row in gather([float(found is not None)])):
        hint = "they hold NaN or infinity; take a checkpoint from before that, or train again with a lower optimizer.lr"
        raise UserError("the weights are not finite", file=found, hint=hint)


def _kept(sum_of_batch: Tensor) -> Tensor | float:
    """What is kept of a batch until the end: on a CPU a number.

    A small tensor that stays lies behind the batch's logits in the heap. glibc before 2.38 does not find the room of
    aligned blocks that were freed before it again (its bug 14581), and the process would grow with every batch.
    """
    return sum_of_batch.item() if sum_of_batch.device.type == "cpu" else sum_of_batch


@torch.no_grad()  # not inference_mode: sharded weights that are first gathered in it could not be trained any more
def _nats(model: LanguageModel, batch: Batch, autocast: Autocast) -> Tensor:
    """Cross-entropy summed over the batch's targets, a scalar on its device."""
    with autocast():
        hidden_ND = model(batch.inputs).flatten(0, 1)
        return linear_cross_entropy(hidden_ND, model.head_weight, batch.targets.flatten(), chunk_tokens=None)
