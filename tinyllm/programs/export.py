"""``python -m tinyllm.export run=<run directory> out=<new directory>``: a trained model for transformers."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.allowed import Option
    from tinyllm.config.cli.main import Invocation


def main() -> None:
    """The console script ``tinyllm-export``."""
    from tinyllm.config.cli.main import run

    run("export", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    from tinyllm.inference.runs import required_run

    facts = export(cfg, required_run(cfg.run, program="export"), allow=invocation.allow)
    if invocation.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['family']}, {facts['parameters']:,} parameters in {facts['dtype']}: {facts['out']}")
    return 0


def export(cfg: "DictConfig", run: str, *, allow: "frozenset[Option]" = frozenset()) -> dict[str, Any]:
    """Write a run's model as transformers stores it; what was written.

    Args:
        cfg: of ``conf/export.yaml``.
        run: a run directory, one of its checkpoints, or a directory of Hugging Face.
        allow: classes beside tinyllm's own that the run's configuration may name.

    Raises:
        UserError: the run cannot be loaded, ``out`` exists, or no family expresses the composition.
    """
    from tinyllm.interop.convert import converted
    from tinyllm.interop.directory import check_out, write
    from tinyllm.interop.tokenizer import special_ids, texts_of
    from tinyllm.programs.load_model import open_saved, sketch
    from tinyllm.utils.text import say_aside

    out = check_out(cfg.out, command=f"python -m tinyllm.export run={run}")
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=say_aside)
    model = sketch(saved, allow=allow)
    family, config, tensors = converted(model, saved.weights(cfg.weights))
    special = saved.special or special_ids(saved.tokenizer)
    texts = texts_of(saved.tokenizer, special=special, max_length=model.max_seq_len, chat=saved.chat)
    dtype = write(out, config=config, special=special, weights=tensors, texts=texts)
    return {
        "out": str(out),
        "family": family,
        "parameters": model.parameter_counts().total,
        "dtype": dtype,
        "checkpoint": str(saved.path),
        "step": saved.step,
    }
