"""A step of training on a fake CUDA device, see ``fake_cuda.py``."""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tinyllm
from tests.support.training_runs import SMALL
from tinyllm.data.batch import PAIR, Batch
from tinyllm.nn.attention import flex_kernel
from tinyllm.programs.builders import build_model, build_objective
from tinyllm.programs.trainer_builder import new_state
from tinyllm.runs.metrics_log import Log
from tinyllm.training import trainer as trainer_module
from tinyllm.training.batch_plan import BatchPlan
from tinyllm.training.callbacks import Callback
from tinyllm.training.checkpointing import NoCheckpoints
from tinyllm.training.curriculum import Lengths
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.profiler import NoProfiler
from tinyllm.training.trainer import Settings, Trainer
from tinyllm.utils.device import autocast
from tinyllm.utils.stop_signal import StopRequest

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal, aten._unique2}
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Waits(Exception):
    """An operation that waits for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations that wait for the device, and those that mix tensors of host and device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, tensors = func.overloadpacket, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = [x.device.type == "cuda" for x in tensors]
        if packet is aten._local_scalar_dense and not any(on_device):
            return 8  # the host knows what it holds: how many targets a batch has, for example
        if packet in WAITING and any(on_device):
            raise Waits(f"{func} waits for the device")
        if packet in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1]) and any(on_device):
            raise Waits(f"{func} with a mask waits for the device")
        out = func(*args, **kwargs)
        if packet in COPIES:
            source = args[1] if packet is not aten._to_copy else args[0]
            if source.device != out.device and not kwargs.get("non_blocking", len(args) > 2 and args[2]):
                raise Waits(f"{func} from {source.device} to {out.device} waits for the copy")
        elif any(on_device) and any(x.ndim and x.device.type == "cpu" for x in tensors):
            raise Waits(f"{func} mixes tensors of host and device")
        return out


def problem(settings: list[str]) -> str:
    """What goes wrong in a step with these settings; "" for nothing."""
    try:
        take_step(settings)
    except Exception as error:
        package = Path(tinyllm.__file__).parent
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
        return f"{place}{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return ""


def take_step(settings: list[str]) -> None:
    """One optimizer step of two micro-batches; its only wait is the one for the metrics."""
    cfg = tinyllm.compose(*(one for one in SMALL if one.startswith(("model.", "optimizer"))), *settings)
    with pretending_hopper(), FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(cfg, vocab_size=24, seed=0, device=CUDA, allow=frozenset(), place=moved)
        precision = "bf16" if cfg.trainer.precision == "auto" else cfg.trainer.precision
        objective = build_objective(cfg, model, allow=frozenset())
        state, _ = new_state(cfg, model, Strategy(), device=CUDA, precision=precision, allow=frozenset())
        length = model.max_seq_len
        examples = [batch_on_host(objective, length) for _ in range(2)]
        trainer = a_trainer(cfg, state, objective, precision=precision, length=length)
        state.average.after_step(0)
        waits: list[int] = []

        def to_floats(scalars: list[Tensor]) -> list[float]:
            waits.append(len(scalars))
            return [1.0] * len(scalars)

        with mock.patch.object(trainer_module, "to_floats", to_floats), NoWaiting():
            trainer.train_step(iter(examples))
        assert len(waits) == 1, f"{len(waits)} transfers of metrics"
        assert all(p.device.type == "cuda" for p in model.parameters())


def moved(model: Any) -> Any:
    """The model on the device. ``Module.to`` cannot move parameters that are fake."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = torch.empty_like(parameter, device=CUDA)
                module._parameters[name] = torch.nn.Parameter(made, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=CUDA)
    return model


@contextmanager
def pretending_hopper() -> Iterator[None]:
    """An H100 for everything that asks torch."""
    with ExitStack() as stack:
        fixed: dict[str, Any] = {
            "torch.cuda.is_available": True,
            "torch.cuda.is_bf16_supported": True,
            "torch.cuda.get_device_capability": (9, 0),
            "torch.cuda.amp.common.amp_definitely_not_available": False,
            "torch.cuda.manual_seed_all": None,
            "torch._C._cuda_getCurrentRawStream": 0,
        }
        # Triton is not installed on a machine without a GPU, and fake tensors cannot pass through what it compiles.
        stack.enter_context(mock.patch.object(flex_kernel, "HAS_TRITON", True))
        stack.enter_context(mock.patch.object(flex_kernel, "_kernel", lambda device: in_place_of_flex))
        for name, value in fixed.items():
            stack.enter_context(mock.patch(name, lambda *_, value=value: value, create=True))
        yield


def in_place_of_flex(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, enable_gqa: bool, **settings: Any) -> Tensor:
    """An operation with the shapes and devices of FlexAttention."""
    assert block_mask.kv_num_blocks.device == q.device
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)


def batch_on_host(objective: Any, length: int) -> Batch:
    """A batch as the loader gives it: on the CPU."""
    batch = objective.example(sequences=2, length=length)
    host = partial(torch.empty_like, device="cpu")
    extra = {name: host(value) for name, value in batch.extra.items()}
    if getattr(objective, "needs_reference", False):
        objective.reference = torch.empty(4, 2, device=CUDA)
        extra[PAIR] = torch.empty(2, dtype=torch.int64)
    doc_ids = None if batch.doc_ids is None else host(batch.doc_ids)
    return Batch(inputs=host(batch.inputs), targets=host(batch.targets), doc_ids=doc_ids, extra=extra)


def a_trainer(cfg: Any, state: Any, objective: Any, *, precision: str, length: int) -> Trainer:
    """A trainer that can take a step and nothing else."""
    settings = Settings(
        seed=0, max_steps=8, max_minutes=None, stop_after_steps=None, grad_clip=1.0, log_every=1, eval_every=0,
        sample_every=0, checkpoint_every=0, nonfinite_action="skip", nonfinite_patience=5,
    )  # fmt: skip
    return Trainer(
        state=state,
        objective=objective.train(),
        forward=objective,
        lr_at=lambda step: 1e-3,
        settings=settings,
        batch_plan=BatchPlan(batch_size=2, grad_accum_steps=2, seq_len=length, world_size=1),
        lengths=Lengths(seq_len=length),
        autocast=partial(autocast, CUDA, precision),
        batches=lambda: iter(()),
        evaluate=lambda stopping: {},
        sample=lambda step, stopping: "",
        checkpoints=NoCheckpoints(),
        log=Log(),
        events=Callback(),
        stop=StopRequest(),
        warm_up=lambda: None,
        profiler=NoProfiler(),
        peak_flops=None,
        run_dir=Path(),
    )
