"""The decoding step of a whole model in C++, where all its parts can be recorded."""

from collections.abc import Sequence

from torch import nn

from tinyllm.nn.decode_kernels import INPUT_DTYPES
from tinyllm.nn.decode_step import DecodeStep
from tinyllm.nn.inference_linear import InferenceForm
from tinyllm.nn.position import Position
from tinyllm.nn.step_recorder import StepRecorder, Unsupported


def recorded_step(
    form: InferenceForm,
    embedding: nn.Embedding,
    pos: Position,
    blocks: Sequence[nn.Module],
    norm: nn.Module,
    max_seq_len: int,
) -> DecodeStep | None:
    """The step of a model whose matrices have ``form``: token ids to the hidden states after the final norm.

    None: a part of the model can only be run by its own ``forward``.
    """
    if form.kernels is None or form.dtype not in INPUT_DTYPES:
        return None
    step = StepRecorder(form.kernels, form.dtype)
    try:
        stream = step.embed(embedding.weight, step.record(pos, computes="embed"))
        for layer, block in enumerate(blocks):
            step.record(block, layer, stream)
        hidden = step.record(norm, stream, True)
    except Unsupported:
        return None
    return DecodeStep(step, hidden, max_len=max_seq_len, most_rows=form.most_rows)
