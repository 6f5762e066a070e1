"""``python -m tinyllm.import_hf``: create a run directory from a Hugging Face model."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyllm.config.cli.main import Invocation
from tinyllm.config.saved import settings_text
from tinyllm.errors import UserError
from tinyllm.interop.directory import ModelDirectory, check_out, main_dtype, new_directory
from tinyllm.programs.load_model import build_saved
from tinyllm.programs.saved_model import open_hugging_face
from tinyllm.runs import layout
from tinyllm.runs.checkpoint_writer import Saver
from tinyllm.runs.provenance import provenance
from tinyllm.utils.files import write_json, write_text
from tinyllm.utils.text import print_note


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Import the model and print what was written. Returns the exit code.

    Args:
        cfg: the settings of ``conf/import_hf.yaml``.
    """
    if not cfg.path:
        hint = "give a directory with config.json and model.safetensors"
        raise UserError("no model given", key="path", value=cfg.path, hint=hint)
    facts = import_hf(cfg.path, cfg.out)
    if invocation.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['family']}, {facts['parameters']:,} parameters in {facts['dtype']}: {facts['out']}")
    return 0


def import_hf(path: str, out: str | None) -> dict[str, Any]:
    """Write a run directory with one checkpoint that holds the weights of a Hugging Face directory.

    Values and dtypes stay those of the files; a program that loads the run computes in fp32 or under autocast.

    Args:
        path: the Hugging Face directory.
        out: the run directory to write.

    Returns:
        What was written: directory, family, parameters and dtype.

    Raises:
        UserError: ``out`` exists, or tinyllm cannot express the model; the message names the entry of config.json.
    """
    target = check_out(out, command=f"python -m tinyllm.import_hf path={path}")
    final = target.absolute() / layout.TOKENIZER
    saved = open_hugging_face(path, tokenizer_file=final, tell=print_note)
    weights = saved.weights("raw")
    facts = {
        "out": str(target),
        "family": ModelDirectory(path).family.title,
        "parameters": build_saved(saved).parameter_counts().total,
        "dtype": main_dtype(weights),
    }
    texts = {
        layout.CONFIG: OmegaConf.to_yaml(saved.cfg, resolve=True),
        layout.OVERRIDES: settings_text(saved.settings),
        layout.TOKENIZER: saved.tokenizer.to_json(),
    }
    imported = {"from": str(Path(path).absolute()), "special": saved.special, "chat": saved.chat, **facts}
    imported["adds_bos"] = saved.tokenizer.adds_bos
    with new_directory(target) as folder:
        for name, text in texts.items():
            write_text(folder / name, text)
        (folder / layout.CHECKPOINTS).mkdir()
        known = {"data": saved.data, "imported": imported, "world_size": 1, **provenance()}
        saver = Saver(folder / layout.CHECKPOINTS, texts=texts, facts=known, keep=1, asynchronous=False)
        saver.begin(step=0, weights=weights, state={}, best=True)
        saver.commit()
        write_json(folder / layout.RUN_JSON, {"status": "imported", "imported": imported, **provenance()})
    return facts
