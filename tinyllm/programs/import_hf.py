"""``python -m tinyllm.import_hf path=<directory of Hugging Face> out=<new run directory>``: a model from elsewhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation


def main() -> None:
    """The console script ``tinyllm-import-hf``."""
    from tinyllm.config.cli.main import run

    run("import_hf", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    from tinyllm.errors import UserError

    if not cfg.path:
        hint = "a directory with config.json and model.safetensors"
        raise UserError("which model?", key="path", value=cfg.path, hint=hint)
    facts = import_hf(cfg.path, cfg.out)
    if invocation.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['family']}, {facts['parameters']:,} parameters in {facts['dtype']}: {facts['out']}")
    return 0


def import_hf(path: str, out: str | None) -> dict[str, Any]:
    """Write a run directory with one checkpoint, of the weights that a directory of Hugging Face holds.

    Values and dtype are those of the files; whoever loads the run computes in fp32 or under autocast, as ever.

    Args:
        path: the directory of Hugging Face.
        out: the run directory to be.

    Raises:
        UserError: ``out`` exists, or tinyllm cannot express the model; the line names the entry of config.json.
    """
    from omegaconf import OmegaConf

    from tinyllm.config.saved import settings_text
    from tinyllm.interop.directory import Directory, building, check_out
    from tinyllm.programs.load_model import open_hugging_face, sketch
    from tinyllm.runs import layout as names
    from tinyllm.runs.checkpoint_writer import Saver
    from tinyllm.runs.provenance import provenance
    from tinyllm.utils.files import write_json, write_text
    from tinyllm.utils.text import say_aside

    target = check_out(out, command=f"python -m tinyllm.import_hf path={path}")
    final = target.absolute() / names.TOKENIZER
    saved = open_hugging_face(path, tokenizer_file=final, tell=say_aside)
    weights = saved.weights("raw")
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()]
    facts = {
        "out": str(target),
        "family": Directory(path).family.title,
        "parameters": sketch(saved).parameter_counts().total,
        "dtype": max(dtypes, key=dtypes.count),
    }
    texts = {
        names.CONFIG: OmegaConf.to_yaml(saved.cfg, resolve=True),
        names.OVERRIDES: settings_text(saved.settings),
        names.TOKENIZER: saved.tokenizer.to_json(),
    }
    imported = {"from": str(Path(path).absolute()), "special": saved.special, "chat": saved.chat, **facts}
    imported["adds_bos"] = saved.tokenizer.adds_bos
    with building(target) as folder:
        for name, text in texts.items():
            write_text(folder / name, text)
        (folder / names.CHECKPOINTS).mkdir()
        known = {"data": saved.data, "imported": imported, "world_size": 1, **provenance()}
        saver = Saver(folder / names.CHECKPOINTS, texts=texts, facts=known, keep=1, asynchronous=False)
        saver.begin(step=0, weights=weights, state={}, best=True)
        saver.commit()
        write_json(folder / names.RUN_JSON, {"status": "imported", "imported": imported, **provenance()})
    return facts
