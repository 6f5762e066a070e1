"""Documents, and conversations, packed into rows equal each alone, for every option found in ``conf/``."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.options import CONTEXT, VOCABULARY, Choice, built, combinations_of_all, everyday, params, small
from tinyllm.data.batch import Batch
from tinyllm.data.chat.packed import PackedConversations
from tinyllm.data.chat.rows import ConversationSplit
from tinyllm.models.transformer import Transformer
from tinyllm.nn.attention import document_kernel
from tinyllm.nn.attention.masking import AttentionMask, document_positions
from tinyllm.nn.loss import IGNORE, linear_cross_entropy
from tinyllm.training.objectives.next_token import NextToken

ALL = combinations_of_all()
EVERYDAY = sorted(everyday(ALL))[::4]
DOC_IDS = torch.tensor([[7] * 5 + [2] * 6 + [9], [3] + [0] * 9 + [-1] * 2])
"""Two rows of three documents, some longer than the window; ids need not be ordered."""
IDS = torch.randint(VOCABULARY, DOC_IDS.shape, generator=torch.Generator().manual_seed(1))
assert DOC_IDS.shape[1] == CONTEXT


def loss_and_gradients(model: Transformer, *batches: tuple[Tensor, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy with each token as its own target, summed over (ids, doc_ids) batches."""
    losses = []
    for ids_BT, doc_ids in batches:
        hidden_BTC = model(ids_BT, doc_ids=doc_ids)
        losses.append(linear_cross_entropy(hidden_BTC.flatten(0, 1), model.head_weight, ids_BT.flatten()))
    loss = torch.stack(losses).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def alone(ids_BT: Tensor, doc_ids: Tensor) -> list[tuple[Tensor, None]]:
    """Each document as a batch of its own."""
    return [
        (ids_BT[row, doc_ids[row] == doc][None], None) for row in range(len(ids_BT)) for doc in doc_ids[row].unique()
    ]


def assert_equal_to_each_alone(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all documents of a row in one call of the kernel, and with groups of 5, 6 + 1, 1, 9 and 2 tokens."""
    expected, expected_gradients = loss_and_gradients(model, *alone(IDS, DOC_IDS))
    for group in (CONTEXT, 7):
        monkeypatch.setattr(document_kernel, "GROUP", group)
        together, gradients = loss_and_gradients(model, (IDS, DOC_IDS))
        torch.testing.assert_close(together, expected, rtol=1e-5, atol=0)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
            assert error < 1e-5, name


@pytest.mark.parametrize("choice", params(ALL, EVERYDAY))
def test_loss_and_gradients_equal_those_of_each_document_alone(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_to_each_alone(built(choice, document_mask=True), monkeypatch)


LENGTHS = (4, 6, 2, 5, 9, 3, 13)
"""Tokens of conversations; the last one fills a window."""


def conversations() -> ConversationSplit:
    """Conversations of these lengths, in which the assistant says a third of the tokens and always the last one."""
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    generator = np.random.default_rng(2)
    is_target = generator.random(starts[-1]) < 1 / 3
    is_target[starts[1:] - 1] = True
    ids = generator.integers(VOCABULARY, size=starts[-1]).astype(np.uint32)
    return ConversationSplit("train", ids, is_target, starts, False, np.ones(VOCABULARY, dtype=np.int64), "best_fit")


def mean_loss_and_gradients(model: Transformer, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over all targets, and its gradients."""
    objective, weight = NextToken(model), sum(batch.counted for batch in batches)
    loss = torch.stack([objective(batch).total / weight for batch in batches]).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def assert_packed_conversations_equal_each_alone(model: Transformer) -> None:
    split = conversations()
    packed = PackedConversations(split, seq_len=CONTEXT, seed=3)
    windows = [packed.batch(np.array([window])) for window in range(packed.windows_per_epoch)]
    assert len(windows) < len(LENGTHS) and any((batch.targets == IGNORE).any() for batch in windows)
    rows = [split.row(number) for number in range(len(LENGTHS))]
    each = [Batch(inputs=torch.from_numpy(ids)[None], targets=torch.from_numpy(targets)[None]) for ids, targets in rows]
    expected, expected_gradients = mean_loss_and_gradients(model, each)
    together, gradients = mean_loss_and_gradients(model, windows)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert error < 1e-5, name


@pytest.mark.parametrize("choice", params(ALL, EVERYDAY[::6]))
def test_packed_conversations_equal_each_conversation_alone(choice: Choice) -> None:
    assert_packed_conversations_equal_each_alone(built(choice, document_mask=True))


def test_packed_conversations_without_a_mask_see_each_other() -> None:
    with pytest.raises(AssertionError):
        assert_packed_conversations_equal_each_alone(small(document_mask=False))


@pytest.mark.parametrize("attn", ["gqa", "mla"])
@pytest.mark.parametrize("pos", ["rope", "learned"])
def test_sinks_are_per_document(attn: str, pos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"window": 2, "sinks": 1, "softcap": 2.0}
    settings = [f"model.block.attn.{key}={value}" for key, value in keys.items()]
    assert_equal_to_each_alone(small(f"attn={attn}", f"pos={pos}", *settings, document_mask=True), monkeypatch)


def test_layers_of_different_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = 'model.layers.kinds={near:"attn=gqa model.block.attn.window=3",far:"attn=mla moe=aux_free"}'
    settings = ("layers=pattern", kinds, "model.layers.pattern=[near,far]")
    assert_equal_to_each_alone(small(*settings, document_mask=True, short_conv=3), monkeypatch)


def test_activation_checkpointing_with_documents() -> None:
    model = small("attn=gqa", "model.block.attn.window=3", document_mask=True)
    expected = loss_and_gradients(model, (IDS, DOC_IDS))
    model.recompute_every = 1
    torch.testing.assert_close(loss_and_gradients(model, (IDS, DOC_IDS)), expected, rtol=0, atol=0)


def test_one_document_per_row_equals_no_documents() -> None:
    model = small("pos=learned", document_mask=True)
    torch.testing.assert_close(model(IDS, doc_ids=torch.zeros_like(IDS)), model(IDS), rtol=1e-5, atol=1e-5)


def test_without_document_mask_doc_ids_are_ignored() -> None:
    model = small()
    torch.testing.assert_close(model(IDS, doc_ids=DOC_IDS), model(IDS), rtol=0, atol=0)


def test_a_document_is_a_run_of_equal_ids() -> None:
    assert document_positions(torch.tensor([[4, 4, 0, 0, 0, 4]])).tolist() == [[0, 1, 0, 1, 2, 0]]


def test_mask_of_documents_with_window_and_sinks() -> None:
    visible_TS = AttentionMask(window=2, sinks=1).within_documents(torch.tensor([[0, 0, 0, 0, 1, 1]]))[0, 0]
    assert visible_TS.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_doc_ids_of_another_shape_or_with_a_cache_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"doc_ids of shape \(2, 11\) cannot be combined with ids of shape \(2, 12\)"):
        model(IDS, doc_ids=DOC_IDS[:, 1:])
    with pytest.raises(ValueError, match="cannot be combined with a cache"):
        model(IDS, cache=model.make_cache(2, CONTEXT), doc_ids=DOC_IDS)
