"""The memory of attention."""

import torch

from tinyllm.nn.cache import Cache, LayerCache


def layer(**changes: int) -> LayerCache:
    """Two rows of one head of three numbers and one of two."""
    sizes = {"batch_size": 2, "max_len": 5} | changes
    return LayerCache([(1, 3), (1, 2)], **sizes, device=torch.device("cpu"), dtype=torch.float32)


def test_what_was_written_comes_back() -> None:
    cache = layer()
    k, v = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 4, 2)
    cache.update(k[:, :, :3], v[:, :, :3], start=0)
    found, mask = cache.update(k[:, :, 3:], v[:, :, 3:], start=3)
    assert torch.equal(found[0], k) and torch.equal(found[1], v) and mask is None
    assert cache.nbytes() == 2 * 5 * (3 + 2) * 4


def test_lengths_of_rows() -> None:
    cache = Cache([layer()], max_len=5)
    cache.rows(1, 2).advance(3)
    assert cache.length == 3 and isinstance(cache.start, torch.Tensor) and cache.start.tolist() == [0, 3]
    cache.rows(0, 1).advance(3)
    assert cache.start == 3
    cache.rows(0, 1).reset()
    assert cache.lengths_B.tolist() == [0, 3]
    cache.advance(1)
    cache.repeat_first()
    assert cache.start == 1 and cache.length == 1
    cache.reset()
    assert cache.length == 0
