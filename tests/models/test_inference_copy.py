"""Copies of a model for decoding many rows, and which of them share the beginnings of rows."""

import pytest
import torch

from tests.support.kernels import decode_kernels_here
from tests.support.models import tiny_model
from tinyllm.models.inference_copy import branched_cache, inference_copy

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_without_kernels_a_model_is_its_own_copy() -> None:
    model = tiny_model()
    assert inference_copy(model, None) is model
    assert branched_cache(model, model.make_cache(2, 8), [0, 1], n_new=2) is None


def test_a_model_that_is_in_its_form_for_inference_stays_so() -> None:
    model, kernels = tiny_model().eval(), decode_kernels_here()
    model.for_inference(torch.float32, int8=True, kernels=kernels)
    assert inference_copy(model, kernels) is model


SHARES = {"attn=gqa": True, "model.block.attn.window=4": False, "attn=mla": False, "moe=aux_free": False}


@pytest.mark.parametrize("override", SHARES)
@torch.no_grad()
def test_rows_that_begin_alike_continue_as_others_do(override: str) -> None:
    kernels = decode_kernels_here()
    if kernels is None:
        pytest.skip("there is no compiler")
    model = tiny_model(override).eval()
    copy = inference_copy(model, kernels)
    shared = copy.make_cache(2, 5)
    copy(IDS, cache=shared)
    beginnings = [1, 0, 1, 1]
    cache = branched_cache(copy, shared, beginnings, n_new=5)
    assert (cache is not None) == SHARES[override]
    if cache is None:
        return
    following = torch.tensor([[7, 8], [1, 2], [7, 3], [4, 4]])
    expected = model(torch.cat((IDS[beginnings], following), 1))[:, 5:]
    for step in range(2):
        hidden = copy(following[:, step : step + 1], cache=cache)[:, 0]
        torch.testing.assert_close(hidden, expected[:, step], atol=1e-5, rtol=1e-5)
    cache.copy_row(3, 1)
    left = cache.rows(0, 3)
    again = torch.tensor([[5], [6], [2]])
    rows = [[*IDS[beginnings[row]].tolist(), *following[row].tolist()] for row in (0, 3, 2)]
    expected = model(torch.cat((torch.tensor(rows), again), 1))[:, -1]
    torch.testing.assert_close(copy(again, cache=left)[:, 0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match="only a step in C"):
        copy(torch.zeros(3, 2, dtype=torch.int64), cache=left)
