"""How well a model predicts a split: the one function behind every val/loss."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tinyllm.data.loader import eval_batches, eval_bytes
from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.nn.loss import linear_cross_entropy


def evaluate(
    model: LanguageModel,
    split: Any,
    *,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None = None,
    stride: int | None = None,
    device: torch.device | str,
    autocast: Autocast = nullcontext,
    name: str = "val",
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

    Returns:
        ``val/loss`` (mean nats per token), ``val/ppl`` (its exponential) and, where the split knows the bytes
        of its tokens, ``val/bpb`` (nats / (ln 2 · UTF-8 bytes of the predicted tokens)).
    """
    was_training = model.training
    model.train(False)
    nats: list[Tensor] = []
    tokens = 0
    try:
        for inputs_BT, targets_BT in eval_batches(
            split, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens, stride=stride
        ):
            tokens += int((targets_BT != -100).sum())
            nats.append(_nats(model, inputs_BT.to(device), targets_BT.to(device), autocast))
    finally:
        model.train(was_training)
    # One transfer at the end: reading each batch's sum at once would make the device wait for it.
    total = torch.stack(nats).cpu().double().sum().item()
    loss = total / tokens
    metrics = {f"{name}/loss": loss, f"{name}/ppl": math.exp(min(loss, 700.0))}
    n_bytes = eval_bytes(split, seq_len=seq_len, max_tokens=max_tokens, stride=stride)
    if n_bytes:
        metrics[f"{name}/bpb"] = total / (math.log(2) * n_bytes)
    return metrics


@torch.inference_mode()
def _nats(model: LanguageModel, inputs_BT: Tensor, targets_BT: Tensor, autocast: Autocast) -> Tensor:
    """Sum over the batch's targets, a scalar on its device."""
    with autocast():
        hidden_BTD = model(inputs_BT)
        return linear_cross_entropy(
            hidden_BTD.flatten(0, 1), model.head_weight, targets_BT.flatten(), chunk_tokens=None
        )
