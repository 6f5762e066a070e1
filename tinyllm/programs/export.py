"""``python -m tinyllm.export``: write a trained model as Hugging Face transformers stores it."""

import json
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.interop.convert import convert
from tinyllm.interop.directory import check_out, write
from tinyllm.interop.tokenizer import special_ids, tokenizer_files
from tinyllm.programs.conversations import turn_ends
from tinyllm.programs.load_model import SavedModel, build_saved, open_saved
from tinyllm.runs.listing import required_run
from tinyllm.utils.text import print_note

PAD = "<pad>"


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Export a run and print what was written. Returns the exit code.

    ``run`` names a run directory, one of its checkpoints, or a Hugging Face directory.
    """
    run = required_run(cfg.run, program=invocation.program)
    facts = export(cfg, run, allow=invocation.allow)
    if invocation.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['family']}, {facts['parameters']:,} parameters in {facts['dtype']}: {facts['out']}")
    return 0


def padding_of(saved: SavedModel) -> dict[str, Any]:
    """``pad_token_id`` of a reward model: transformers scores the last token that is another one."""
    padding = saved.tokenizer.special.get(PAD)
    if padding is None:
        print_note(f"the tokenizer has no {PAD}: transformers scores one answer at a time, or set pad_token_id")
    return {"pad_token_id": padding}


def export(cfg: DictConfig, run: str, *, allow: frozenset[Option] = frozenset()) -> dict[str, Any]:
    """Write a run's model to a new directory that transformers reads.

    Args:
        cfg: the settings of ``conf/export.yaml``.
        run: a run directory, one of its checkpoints, or a Hugging Face directory.
        allow: classes beyond tinyllm's own that the run's configuration may name.

    Returns:
        What was written: directory, family, parameters, dtype, checkpoint and its step.

    Raises:
        UserError: the run cannot be loaded, ``out`` exists, or no family expresses the composition.
    """
    out = check_out(cfg.out, command=f"python -m tinyllm.export run={run}")
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
    model = build_saved(saved, allow=allow)
    family, config, tensors = convert(model, saved.weights(cfg.weights))
    special = saved.special or special_ids(saved.tokenizer) | turn_ends(saved)
    if model.score is not None:
        special |= padding_of(saved)
    texts = tokenizer_files(saved.tokenizer, special=special, max_length=model.max_seq_len, chat=saved.chat)
    dtype = write(out, config=config, special=special, weights=tensors, texts=texts)
    return {
        "out": str(out),
        "family": family,
        "parameters": model.parameter_counts().total,
        "dtype": dtype,
        "checkpoint": str(saved.path),
        "step": saved.step,
    }
