"""A micro-step never waits for the device: no operation of it needs a value on the host.

On a GPU each such operation drains the queue of kernels. Without a GPU, the operations themselves show it.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tinyllm
from tests.support.training_runs import SMALL
from tinyllm.nn import loss as loss_module
from tinyllm.programs.builders import build_model
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.trainer import clip
from tinyllm.utils.device import autocast

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal, aten._unique2}
INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
CPU = torch.device("cpu")


class HostSyncs(TorchDispatchMode):
    """The operations that need a value on the host, or whose output's shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func.overloadpacket in WAITING or by_mask:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [(), ("attn=mla",), ("ffn=mlp", "norm=layernorm")], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("terms", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=["plain", "terms"])
def test_a_micro_step_waits_for_nothing(
    options: tuple[str, ...], precision: str, terms: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "ONE_PASS_DEVICES", ())  # the path of a GPU
    cfg = tinyllm.compose(*(setting for setting in SMALL if setting.startswith("model.")), *options)
    model = build_model(cfg, vocab_size=20, seed=0, device=CPU, allow=frozenset())
    objective = NextToken(model, chunk_tokens=5, **terms)
    batch = objective.example(sequences=2, length=16)
    with HostSyncs() as syncs:
        with autocast(CPU, precision):
            loss = objective(batch)
        loss.share_of_step(weight=32, fraction=1.0).backward()
        norm = clip(list(model.parameters()), 1.0)
        assert not syncs.seen
        norm.item()
    assert syncs.seen == ["aten._local_scalar_dense.default"]  # what the test looks for is seen
