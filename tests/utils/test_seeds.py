"""Random streams: seeding a device's own generators."""

import torch

from tinyllm.utils.seeds import seed_device


def test_seeding_a_device_gives_the_numbers_of_torchs_own_seed() -> None:
    before = torch.random.get_rng_state()
    try:
        torch.manual_seed(2**62 + 5)
        expected = torch.nn.functional.dropout(torch.ones(1000), 0.5)
        seed_device(2**62 + 5, torch.device("cpu"))
        assert torch.equal(torch.nn.functional.dropout(torch.ones(1000), 0.5), expected)
        seed_device(1, torch.device("cpu"))
        assert not torch.equal(torch.nn.functional.dropout(torch.ones(1000), 0.5), expected)
    finally:
        torch.random.set_rng_state(before)
