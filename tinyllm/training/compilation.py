"""Compiling the blocks of a model with ``torch.compile``."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.compiler.config
from torch import nn

from tinyllm.errors import UserError
from tinyllm.training.curriculum import Lengths
from tinyllm.training.state import rng_state, set_rng_state

GRAPHS = 8
"""Graphs a block may need besides those of single lengths; more mean that it is recompiled over and over."""

F = TypeVar("F", bound=Callable[..., Any])


class Eager:
    """The interface of :class:`Compiled`; compiles nothing."""

    def calls(self, forward: F) -> F:
        """``forward`` with compiler errors turned into a :class:`UserError`."""
        return forward

    def warm_up(self, run: Callable[[int], None], *, tell: Callable[[str], None]) -> dict[str, Any] | None:
        """Compile the graphs that the first step needs.

        Args:
            run: a forward and backward pass over a micro-batch of sequences of the given length.
            tell: shows a sentence to the user.

        Returns:
            Facts for ``run.json``; None: nothing was compiled.
        """
        return None

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        """The context for evaluation and sampling."""
        yield

    def close(self) -> None:
        """Release the compiled graphs."""


@dataclass(kw_only=True)
class Compiled(Eager):
    """Compiles the blocks of a model in place, one by one.

    Blocks of one kind share a graph, which is compiled once and not once per layer. Parameter names stay the same, and
    features that act on whole blocks (DDP, FSDP, recompute, LayerDrop) need no change.

    Evaluation and sampling run uncompiled. Their inputs have many shapes; compiling a graph for each would take longer
    than it saves. It also makes ``val/loss`` exactly what the ``evaluate`` command computes.

    Layers whose graph depends on more than the shapes of their inputs are not compiled.

    Args:
        model: its ``layers()`` are compiled.
        device, dtype: training device, and dtype of autocast there.
        lengths: sequence lengths of the run. If they vary, the graph for all lengths is compiled from the same lengths
            at whatever step a run resumes, so that it computes the same bits.
        any_rank: given whether this rank failed, returns whether any rank did.
        stopping: whether the run was asked to stop. Compiler errors caused by that are not failures.
        backend, mode, fullgraph, dynamic: arguments of ``torch.compile``.
        fallback: after a failure, train uncompiled instead of raising.

    Raises:
        UserError: ``fullgraph`` with a layer that cannot be compiled.
    """

    model: Any
    device: torch.device
    dtype: torch.dtype
    lengths: Lengths
    any_rank: Callable[[bool], bool]
    stopping: Callable[[], bool]
    backend: str
    mode: str
    fullgraph: bool
    dynamic: bool | None
    fallback: bool

    def __post_init__(self) -> None:
        # Sets the compiler's flag too, which utils.device.deterministic leaves alone.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        config: Any = torch.compiler.config  # its attributes are created at run time
        self._blocks = self.model.layers()
        self._stack = ExitStack()
        self._stack.callback(torch.compiler.reset)
        limit = len(self._blocks) * (GRAPHS + len(self._warm_up_lengths()))
        # torch silently runs a block uncompiled once it exceeds the limit; here that happens only with `fallback`,
        # otherwise it raises.
        limits = {"recompile_limit": limit, "fail_on_recompile_limit_hit": not self.fallback}
        limits["accumulated_recompile_limit"] = max(limit, config.accumulated_recompile_limit)
        self._stack.enter_context(config.patch(**limits))
        uncompilable = list(self._uncompilable())
        if uncompilable and self.fullgraph:
            name = type(uncompilable[0]).__name__
            hint = f"{name} needs a new graph for every batch or length; set trainer.compile.fullgraph=false"
            what = "a block cannot be compiled as a single graph"
            raise UserError(what, key="trainer.compile.fullgraph", value=True, hint=hint)
        for layer in uncompilable:
            layer.forward = torch.compiler.disable(layer.forward, reason="it needs a new graph for every batch")
        mode = None if self.mode == "default" else self.mode
        with _quiet():
            for block in self._blocks:
                block.compile(backend=self.backend, mode=mode, fullgraph=self.fullgraph, dynamic=self.dynamic)

    def calls(self, forward: F) -> F:
        call: Any = partial(self._call, forward)
        return call

    def _call(self, forward: Callable[..., Any], *inputs: Any) -> Any:
        errors = torch._dynamo.exc  # torch imports _dynamo, which takes seconds, when the attribute is first read
        try:
            return forward(*inputs)
        except (errors.FailOnRecompileLimitHit, errors.TorchDynamoException) as error:
            raise self._compile_error(error) from error

    def warm_up(self, run: Callable[[int], None], *, tell: Callable[[str], None]) -> dict[str, Any] | None:
        """Compile before the first step, so that the measured speed excludes it and a failure shows at once.

        Random streams and buffers are restored, and no gradients are left.

        Raises:
            UserError: compilation failed on any rank, without ``fallback``.
        """
        tell(f"compiling {len(self._blocks)} blocks with {self.backend}; this may take minutes")
        start, before, failure = time.perf_counter(), graphs_compiled(), None
        with preserving_state(self.model), _quiet():
            try:
                for length in self._warm_up_lengths():
                    run(length)
            except Exception as error:
                failure = error
        seconds = round(time.perf_counter() - start, 1)
        facts = {"backend": self.backend, "mode": self.mode, "blocks": len(self._blocks), "seconds": seconds}
        facts |= {"programs": graphs_compiled() - before, "failure": None}
        if not self.any_rank(failure is not None):
            if self.fallback:
                self._stack.enter_context(torch._dynamo.config.patch(suppress_errors=True))
            tell(f"compiled in {seconds} s: graphs: {facts['programs']}, blocks: {len(self._blocks)}")
            return facts
        if not self.fallback and not self.stopping():
            raise self._compile_error(failure) from failure
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        tell(f"training uncompiled: {in_a_line(failure)}")
        return facts | {"failure": in_a_line(failure)}

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        with torch.compiler.set_stance("force_eager"):
            yield

    def close(self) -> None:
        self._stack.close()

    def _uncompilable(self) -> Iterator[nn.Module]:
        """The layers that would be recompiled again and again."""
        lengths = self.lengths.distinct() if self.dynamic is not False else []
        for block in self._blocks:
            if block.ffn.has_data_dependent_shapes(self.device, self.dtype):
                yield block.ffn
            by_document = self.model.document_mask and block.attn.has_data_dependent_shapes(self.device)
            if by_document or (
                len(lengths) > 1
                and any(block.attn.recompiles_per_length(self.device.type, self.dtype, length) for length in lengths)
            ):
                yield block.attn

    def _warm_up_lengths(self) -> list[int]:
        """The lengths to compile for: all of them without dynamic shapes; else two, which then cover any length."""
        if self.dynamic is False:
            return self.lengths.distinct()
        return list(dict.fromkeys([self.lengths.at(0), self.lengths.seq_len]))

    def _compile_error(self, error: Exception | None) -> UserError:
        hint = f"{in_a_line(error)}; trainer.compile.fallback=true trains uncompiled"
        return UserError("the model cannot be compiled", key="trainer.compile.enabled", value=True, hint=hint)


def check_backend(name: str) -> None:
    """Refuse an unknown compiler backend.

    Raises:
        UserError: torch has no such backend.
    """
    if name not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UserError(
            "unknown compiler backend", key="trainer.compile.backend", value=name, hint=f"torch offers {known}"
        )


def graphs_compiled() -> int:
    """Number of graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextmanager
def preserving_state(model: nn.Module) -> Iterator[None]:
    """Restore random streams and buffers when the context ends, and drop the gradients."""
    streams, buffers = rng_state(), [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        set_rng_state(streams)
        for buffer, before in buffers:
            buffer.copy_(before)


def in_a_line(error: Exception | None) -> str:
    """The essential line of a compiler error, which can fill pages."""
    if error is None:
        return "a different rank failed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith("raised:") else lines[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings that torch's compiler raises about torch's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield
