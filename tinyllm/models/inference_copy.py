"""Models as they are fastest for decoding many rows on a CPU, made of models that go on training."""

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import nn

from tinyllm.models.transformer import Transformer
from tinyllm.nn.branched_cache import BranchedCache
from tinyllm.nn.cache import Cache
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.utils.tensors import autocast_dtype


def inference_copy(model: Any, kernels: DecodeKernels | None) -> Any:
    """A copy of a model as its weights are now, which shares with it whatever needs no other form.

    It computes in the dtype of autocast where that is on, else in that of the weights. Without kernels, on other
    devices, if it has a form for inference already, and if it is not the whole model (FSDP shares the weights out to
    the ranks), the model itself.
    """
    if kernels is None or not isinstance(model, Transformer) or model.device.type != "cpu" or model.decode_step:
        return model
    twin = _shallow_copy(model)
    twin.for_inference(autocast_dtype(model.device, model.embedding.weight.dtype), kernels=kernels, many_rows=True)
    return twin


def branched_cache(model: Any, cache: Cache, beginnings: Sequence[int], *, n_new: int) -> BranchedCache | None:
    """A cache of rows that begin with rows of this one, see ``BranchedCache``; None: the model cannot use it."""
    step = model.decode_step if isinstance(model, Transformer) else None
    if step is None or not step.can_branch(cache, len(beginnings)):
        return None
    return BranchedCache(cache, beginnings, n_new=n_new)


def _shallow_copy(model: Transformer) -> Transformer:
    """A copy of a module and of all its parts that shares every tensor, without compiled functions."""
    copies: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:  # a part may be in several places
            twin = copies[id(module)] = copy(module)
            twin.__dict__.pop("forward", None)  # the compiler's, which calls the original
            children = module._modules.items()
            twin.__dict__["_modules"] = {name: None if part is None else copied(part) for name, part in children}
        return copies[id(module)]

    twin = copied(model)
    assert isinstance(twin, Transformer)
    return twin
