"""The blocks of a model compiled by ``torch.compile``, or left as they are."""

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

PROGRAMS = 8
"""How many programs a block may need, those of single lengths apart, before that is taken for a mistake."""

F = TypeVar("F", bound=Callable[..., Any])


class Eager:
    """No compiling: what a session asks for, with nothing behind it."""

    def calls(self, forward: F) -> F:
        """``forward`` with errors of the compiler as lines for a person."""
        return forward

    def warm_up(self, run: Callable[[int], None], *, tell: Callable[[str], None]) -> dict[str, Any] | None:
        """Compile what the first step needs; returns what ``run.json`` says of it, None: nothing.

        Args:
            run: a forward and a backward pass in training, over a micro-batch of sequences of a length.
            tell: is given sentences for a person.
        """
        return None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The context of an evaluation or a sample."""
        yield

    def close(self) -> None:
        """Let go of what was compiled."""


@dataclass(kw_only=True)
class Compiled(Eager):
    """Blocks that are compiled in place, each by itself.

    A block is a small program that all blocks of its kind share, so it is compiled once and not once per layer. The
    names of the weights stay, and what is around blocks (DDP, FSDP, recompute, LayerDrop) works as without it.
    Evaluation and samples run uncompiled: for inputs of many shapes they would need programs of their own, which take
    longer to make than they save, and so ``val/loss`` is what ``evaluate`` finds.

    Parts whose program depends on more than the shapes of their inputs are left as they are.

    Args:
        model: its ``layers()`` are compiled.
        device, dtype: where it is trained, and what autocast computes in there.
        lengths: of the sequences. Where they vary, the program for all of them is made in the same way whatever step a
            run is resumed at, so that it computes the same bits.
        agree: of whether this rank failed: whether one did.
        stopping: whether the run was told to end; what that breaks in the compiler is no failure.
        backend, mode, fullgraph, dynamic: those of ``torch.compile``.
        fallback: after a failure go on without, instead of ending with an error.
    """

    model: Any
    device: torch.device
    dtype: torch.dtype
    lengths: Lengths
    agree: Callable[[bool], bool]
    stopping: Callable[[], bool]
    backend: str
    mode: str
    fullgraph: bool
    dynamic: bool | None
    fallback: bool

    def __post_init__(self) -> None:
        config: Any = torch.compiler.config  # what it has is put there at run time
        self._blocks = self.model.layers()
        self._stack = ExitStack()
        self._stack.callback(torch.compiler.reset)
        limit = len(self._blocks) * (PROGRAMS + len(self._trials()))
        # what is given up in the middle of a run would go on uncompiled without a word
        limits = {"recompile_limit": limit, "fail_on_recompile_limit_hit": not self.fallback}
        limits["accumulated_recompile_limit"] = max(limit, config.accumulated_recompile_limit)
        self._stack.enter_context(config.patch(**limits))
        left_out = list(self._left_out())
        if left_out and self.fullgraph:
            hint = f"{type(left_out[0]).__name__}, another program for every batch or length, is no part of it"
            raise UserError("a block is no single graph here", key="trainer.compile.fullgraph", value=True, hint=hint)
        for part in left_out:
            part.forward = torch.compiler.disable(part.forward, reason="it is another program for every batch")
        mode = None if self.mode == "default" else self.mode
        with _quiet():
            for block in self._blocks:
                block.compile(backend=self.backend, mode=mode, fullgraph=self.fullgraph, dynamic=self.dynamic)

    def calls(self, forward: F) -> F:
        call: Any = partial(self._call, forward)
        return call

    def _call(self, forward: Callable[..., Any], *inputs: Any) -> Any:
        errors = torch._dynamo.exc  # an attribute that torch imports when it is first used, which takes seconds
        try:
            return forward(*inputs)
        except (errors.FailOnRecompileLimitHit, errors.TorchDynamoException) as error:
            raise self._refused(error) from error

    def warm_up(self, run: Callable[[int], None], *, tell: Callable[[str], None]) -> dict[str, Any] | None:
        """Compile before the first step, so that it is in no speed and a failure is known at once.

        Random streams and buffers are afterwards as they were, and there are no gradients.

        Raises:
            UserError: it failed, on one rank at least, and there is no fallback.
        """
        tell(f"compiling {len(self._blocks)} blocks with {self.backend}, which may take minutes")
        start, before, failure = time.perf_counter(), programs_made(), None
        with untouched(self.model), _quiet():
            try:
                for length in self._trials():
                    run(length)
            except Exception as error:
                failure = error
        seconds = round(time.perf_counter() - start, 1)
        facts = {"backend": self.backend, "mode": self.mode, "blocks": len(self._blocks), "seconds": seconds}
        facts |= {"programs": programs_made() - before, "failure": None}
        if not self.agree(failure is not None):
            if self.fallback:
                self._stack.enter_context(torch._dynamo.config.patch(suppress_errors=True))
            tell(f"compiled in {seconds} s: {facts['programs']} programs for {len(self._blocks)} blocks")
            return facts
        if not self.fallback and not self.stopping():
            raise self._refused(failure) from failure
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        tell(f"training without compiling: {in_a_line(failure)}")
        return facts | {"failure": in_a_line(failure)}

    @contextmanager
    def reading(self) -> Iterator[None]:
        with torch.compiler.set_stance("force_eager"):
            yield

    def close(self) -> None:
        self._stack.close()

    def _left_out(self) -> Iterator[nn.Module]:
        """The parts that compiling would make anew over and over."""
        lengths = self.lengths.distinct() if self.dynamic is not False else []
        for block in self._blocks:
            if block.ffn.reads_sizes(self.device):
                yield block.ffn
            if len(lengths) > 1 and any(
                block.attn.recompiles_per_length(self.device.type, self.dtype, one) for one in lengths
            ):
                yield block.attn

    def _trials(self) -> list[int]:
        """Lengths to try: all that get a program of their own, or two, after which there is one for any."""
        if self.dynamic is False:
            return self.lengths.distinct()
        return list(dict.fromkeys([self.lengths.at(0), self.lengths.seq_len]))

    def _refused(self, error: Exception | None) -> UserError:
        hint = f"{in_a_line(error)}; trainer.compile.fallback=true goes on without"
        return UserError("the model cannot be compiled", key="trainer.compile.enabled", value=True, hint=hint)


def check_backend(name: str) -> None:
    """Refuse a compiler that torch does not know.

    Raises:
        UserError: it does not.
    """
    if name not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UserError("no such compiler", key="trainer.compile.backend", value=name, hint=f"torch knows {known}")


def programs_made() -> int:
    """Graphs that torch's compiler has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Random streams and buffers are behind the block as they were before it, and there are no gradients."""
    streams, buffers = rng_state(), [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        set_rng_state(streams)
        for buffer, before in buffers:
            buffer.copy_(before)


def in_a_line(error: Exception | None) -> str:
    """What went wrong, out of the pages that compilers write."""
    if error is None:
        return "another rank failed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith("raised:") else lines[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch warns of in its own compiler."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield
