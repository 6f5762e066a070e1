"""Decoding steps of fixed shapes that are recorded and replayed, as CUDA graphs are, against steps that are not.

A recorder stands for the GPU: it notes the operations of a step with the tensors that they read and write, and a replay
repeats them. So a value that Python put into a step, and that changes from token to token, would be the old one.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.options import small
from tinyllm.inference import step_graphs
from tinyllm.inference.decoding import Decoder
from tinyllm.inference.rows import RowBatch
from tinyllm.inference.step_graphs import Step, StepGraphs
from tinyllm.models.transformer import Transformer
from tinyllm.nn import grouped_linear

OPTIONS = {
    "mha": (),
    "gqa": ("attn=gqa", "pos=learned"),
    "mla": ("attn=mla",),
    "window": ("attn=gqa", "model.block.attn.window=5", "model.block.attn.sinks=2"),
    "short_conv": ("model.short_conv=3", "pos=sinusoidal"),
    "softcap": ("model.block.attn.softcap=2", "pos=none"),
    "moe": ("moe=aux_free", "ffn=swiglu"),
}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


class Recorded(TorchDispatchMode):
    """The operations of a step, which ``replay`` repeats in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def recording(step: Step) -> Step:
    with Recorded() as recorded:
        result = step()

    def replay() -> Tensor:
        recorded.replay()
        return result

    return replay


def failing(step: Step) -> Step:
    raise RuntimeError("operation not permitted when stream is capturing\nsome more")


@pytest.fixture
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transformer:
    monkeypatch.setattr(grouped_linear, "has_grouped_mm", lambda device, dtype: True)
    monkeypatch.setattr(step_graphs, "FEWEST_SLOTS", 8)
    return small(*OPTIONS[request.param], max_seq_len=40).eval()


def steps_of(model: Transformer, graphs: bool, n_steps: int = 12) -> list[Tensor]:
    """The logits of each step; a row leaves after the fourth."""
    decoder = Decoder(model, PROMPTS, n_samples=2, max_new_tokens=n_steps + 1, kv_cache=True)
    if graphs:
        assert decoder.cache is not None
        decoder.graphs = StepGraphs(model, decoder.cache, capture=recording)
    found = []
    for step in range(n_steps):
        logits_BV = decoder.logits().clone()
        found.append(logits_BV)
        ids_B = logits_BV.argmax(-1)
        if step == 3:
            decoder.keep([0, 2, 3, 5])
            ids_B = ids_B[[0, 2, 3, 5]]
        decoder.append(ids_B)
    if decoder.graphs is not None:
        assert set(decoder.graphs._replays) == {(6, 8), (4, 16)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("made", OPTIONS, indirect=True)
def test_replayed_steps_equal_others(made: Transformer) -> None:
    for found, expected in zip(steps_of(made, True), steps_of(made, False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", ["mha", "window"], indirect=True)
def test_rows_that_join_and_leave(made: Transformer) -> None:
    """The rows beyond those of a step, one of which is still being read, are left alone."""
    logits = []
    for graphs in (True, False):
        batch: RowBatch[str] = RowBatch(made, n_slots=3, max_len=40)
        batch.graphs = StepGraphs(made, batch.cache, capture=recording) if graphs else None
        for name, ids in zip("abc", PROMPTS, strict=True):
            batch.read(batch.join(name), ids)
        found = [batch.step([3, 4]).clone(), batch.step([5, 6]).clone()]
        batch.read(2, [7, 8])
        batch.leave(0)
        found += [batch.step([1, 2]).clone()]
        logits.append(found)
    for found, expected in zip(*logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", ["short_conv"], indirect=True)
def test_a_step_that_cannot_be_recorded_runs_without(made: Transformer) -> None:
    decoder = Decoder(made, PROMPTS, n_samples=1, max_new_tokens=4, kv_cache=True)
    plain = Decoder(made, PROMPTS, n_samples=1, max_new_tokens=4, kv_cache=True)
    assert decoder.graphs is None and decoder.cache is not None
    decoder.graphs = StepGraphs(made, decoder.cache, capture=failing)
    for step in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = decoder.logits()
        said = [str(warning.message) for warning in caught]
        reason = "decoding without CUDA graphs: operation not permitted when stream is capturing"
        assert said == ([reason] if step == 1 else [])
        assert torch.equal(found, plain.logits())
        for each in (decoder, plain):
            each.append(found.argmax(-1))
