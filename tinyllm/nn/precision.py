"""Which number format pays on which machine."""

import torch


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What linear layers compute in on a device: autocast's dtype where it is on, else ``dtype``."""
    has_autocast = device.type != "meta"
    if has_autocast and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype
